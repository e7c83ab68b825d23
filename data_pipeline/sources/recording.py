"""What a source of speech yields: recordings, and where somebody spoke in them.

A source of speech is opened from its settings in every process that reads it, so that nothing but recordings crosses
from one process to another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from data_pipeline.utterance import Word

MIXED = -1  # as a channel: the mean of all


@dataclass(frozen=True)
class Segment:
    """A stretch of a recording in which one speaker says `text`, from `start` to `end` seconds (None: to its end).

    `words` have times from the start of the segment, where the source knows them. An empty `text` is speech without
    transcript. `channel` counts from 0, or is MIXED where a text is of the whole sound, however many channels that has.
    `quality` holds what the source itself says of it, as numbers.
    """

    start: float = 0.0
    end: float | None = None
    text: str = ""
    speaker: str = ""
    language: str = ""
    channel: int = 0
    role: str = ""
    words: tuple[Word, ...] = ()
    quality: tuple[tuple[str, float], ...] = ()
    style: str = ""


@dataclass(frozen=True)
class Recording:
    """One audio file, or a stretch of one, that becomes one document of a corpus.

    `key` is unique in its source and made of letters, digits, `_` and `-` only (`safe_key`). `audio` says where the
    sound is, in words of its own source only; it is plain data. `duration` is in seconds, None where only decoding
    tells. Without `segments` a recording is cut where nobody speaks. Recordings that follow each other with the same
    `document` belong together, such as the utterances of a chapter or, where segments have roles, the turns of a
    conversation; without one a recording stands alone. A turn that was written has the place `Written` and one segment.
    """

    key: str
    audio: Any
    segments: tuple[Segment, ...] = ()
    duration: float | None = None
    document: str = ""


@dataclass(frozen=True)
class Sound:
    """Decoded audio: float32 [channels, samples] in [-1, 1], `rate` samples a second."""

    samples: np.ndarray
    rate: int

    @property
    def duration(self) -> float:
        return self.samples.shape[1] / self.rate

    def channel(self, number: int) -> np.ndarray:
        """float32 [samples] of a channel, or the mean of all for MIXED. Raises UnreadableAudio if it is not there."""
        if number == MIXED:
            return self.samples.mean(axis=0, dtype=np.float32)
        if not 0 <= number < len(self.samples):
            raise UnreadableAudio("channel", f"channel {number} of {len(self.samples)}")
        return self.samples[number]


class UnreadableAudio(Exception):
    """A recording that gives no sound, or not the one it should. `kind` is one of KINDS."""

    KINDS = {
        "missing": "no such file or member",
        "decode": "no audio, or damaged",
        "truncated": "ends before its header says",
        "empty": "holds no samples",
        "not_finite": "holds NaN or infinite samples",
        "scale": "samples are far outside [-1, 1]",
        "outside": "its path leads out of the source's folder",
        "rate": "its sample rate cannot be speech",
        "duration": "is not as long as the source says",
        "channel": "has no such channel",
        "too_long": "more than an hour at once",
        "role": "has a role that no chat has",
        "conversation": "is no conversation",
    }

    def __init__(self, kind: str, where: str, detail: str = "") -> None:
        super().__init__(f"{where}: {detail or self.KINDS[kind]} ({kind})")
        self.kind = kind
        self.where = where
        self.detail = detail

    def __reduce__(self) -> tuple[type[UnreadableAudio], tuple[str, str, str]]:
        return UnreadableAudio, (self.kind, self.where, self.detail)  # it crosses from workers


class SpeechSource(Protocol):
    """Recordings of one place, always in the same order."""

    @property
    def licence(self) -> str: ...

    def recordings(self) -> Iterator[Recording]:
        """All of them, cheaply: nothing is decoded. Raises BadInput where the place is not what it should be."""
        ...

    def sound(self, recording: Recording, start: float = 0.0, end: float | None = None) -> Sound:
        """Decode one, from `start` to `end` seconds (None: to its end). Raises UnreadableAudio."""
        ...

    def blocks(self, recording: Recording) -> Iterator[Sound]:
        """The same in stretches of half a minute, in order, so that memory is bounded. Raises UnreadableAudio."""
        ...

    def identity(self) -> str:
        """What decides its recordings, for content hashes: changes when files come, go or change size."""
        ...
