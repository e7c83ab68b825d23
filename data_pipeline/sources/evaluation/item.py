"""What a set of an evaluation holds: things that are heard, said or answered, with what is right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from data_pipeline.audio import SAMPLE_RATE, decode_flac, resample
from data_pipeline.shards import ShardReader
from data_pipeline.sources.recording import MIXED, UnreadableAudio
from data_pipeline.sources.speech.places import Place
from data_pipeline.utterance import Utterance


class Recorded(Protocol):
    """Sound that is decoded when it is asked for."""

    def wave(self) -> np.ndarray:
        """float32 [samples] at 16 kHz. Raises UnreadableAudio."""
        ...


@dataclass(frozen=True)
class Stretch:
    """From `start` to `end` seconds (None: to its end) of one channel of the sound at a place."""

    place: Place
    start: float = 0.0
    end: float | None = None
    channel: int = MIXED

    def wave(self) -> np.ndarray:
        """See `Recorded.wave`."""
        blocks = list(self.place.blocks(self.start, self.end, None))
        parts = [block.channel(self.channel) for block in blocks]
        if not parts or not sum(map(len, parts)):
            raise UnreadableAudio("empty", self.place.name)
        return resample(np.concatenate(parts), blocks[0].rate)


@dataclass(frozen=True)
class InShard:
    """A sample of a corpus."""

    shard: Path
    sample: int

    def wave(self) -> np.ndarray:
        """See `Recorded.wave`; a corpus may hold codes without their sound."""
        with ShardReader(self.shard) as reader:
            flac = reader.read_audio(self.sample)
        if flac is None:
            raise UnreadableAudio("missing", f"{self.shard} sample {self.sample}", "the corpus keeps no sound of it")
        return decode_flac(flac)

    def utterance(self) -> Utterance:
        """Its text and codes. Raises DamagedSample."""
        with ShardReader(self.shard) as reader:
            return reader.read(self.sample)


@dataclass(frozen=True)
class Turn:
    """An earlier turn of a conversation: who says it (human or assistant), what, and its sound where there is any."""

    role: str
    text: str
    sound: Recorded | None = None


@dataclass(frozen=True)
class Item:
    """One thing of a set.

    `text`: what `sound` says, or what is to be said; of a question the question, of a task its name. `prompt`: the
    voice that is to say it, a turn with text and sound. `answers`: all that are right, none where only a person or
    another model can tell. `turns`: what was said before. `stored`: where a corpus holds its codes.
    """

    key: str
    text: str
    language: str = ""
    sound: Recorded | None = None
    prompt: Turn | None = None
    answers: tuple[str, ...] = ()
    category: str = ""
    turns: tuple[Turn, ...] = ()
    stored: InShard | None = None


def seconds(wave: np.ndarray) -> float:
    return len(wave) / SAMPLE_RATE
