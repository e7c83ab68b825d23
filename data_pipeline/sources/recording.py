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


@dataclass(frozen=True)
class Segment:
    """A stretch of a recording in which one speaker says `text`, from `start` to `end` seconds (None: to its end).

    `words` have times from the start of the segment, where the source knows them. An empty `text` is speech without
    transcript. `quality` holds what the source itself says of it, as numbers.
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


@dataclass(frozen=True)
class Recording:
    """One audio file, or a stretch of one, that becomes one document of a corpus.

    `key` is unique in its source and made of letters, digits, `_` and `-` only (`safe_key`). `audio` says where the
    sound is, in words of its own source only; it is plain data. `duration` is in seconds, None where only decoding
    tells. Without `segments` a recording is cut where nobody speaks.
    """

    key: str
    audio: Any
    segments: tuple[Segment, ...] = ()
    duration: float | None = None


@dataclass(frozen=True)
class Sound:
    """Decoded audio: float32 [channels, samples] in [-1, 1], `rate` samples a second."""

    samples: np.ndarray
    rate: int


class UnreadableAudio(Exception):
    """A recording that gives no sound. `kind` is missing, decode, empty, not_finite or too_long."""

    def __init__(self, kind: str, where: str) -> None:
        super().__init__(f"{where}: {kind}")
        self.kind = kind


class SpeechSource(Protocol):
    """Recordings of one place, always in the same order."""

    licence: str

    def recordings(self) -> Iterator[Recording]:
        """All of them, cheaply: nothing is decoded. Raises BadInput where the place is not what it should be."""
        ...

    def sound(self, recording: Recording) -> Sound:
        """Decode one. Raises UnreadableAudio."""
        ...

    def identity(self) -> str:
        """What decides its recordings, for content hashes: changes when files come, go or change size."""
        ...
