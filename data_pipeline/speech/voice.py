"""What a voice is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from data_pipeline.utterance import Word


@dataclass(frozen=True)
class Spoken:
    """`wave`: float32 [samples] at 16 kHz. `words`: the text's words in order, times in seconds, within the wave."""

    wave: np.ndarray
    words: tuple[Word, ...]


class Voice(Protocol):
    speaker: str
    licence: str

    def speak(self, text: str, seed: int) -> Spoken | None:
        """`text` spoken, the same for the same text and seed; None where its words could not be timed reliably."""
        ...
