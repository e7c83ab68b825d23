"""An utterance: what one sample of a shard holds."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Word:
    """A word and when it is spoken, in seconds from the start of the utterance."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Utterance:
    """Text, and where it was spoken, the speech as codes.

    `codes` maps a codec's name to integers of shape [codebooks, frames]. `duration` is in seconds, 0 for text
    that was not spoken. Utterances of one `document` stand next to each other, in order, in one shard.
    """

    key: str
    text: str
    document: str
    language: str = "en"
    speaker: str = ""
    duration: float = 0.0
    words: tuple[Word, ...] = ()
    source: str = ""
    licence: str = ""
    quality: dict[str, float] = field(default_factory=dict)
    codes: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def spoken(self) -> bool:
        return bool(self.codes)
