"""What an aligner is."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from data_pipeline.utterance import Word


class Aligner(Protocol):
    """Word times from sound and transcript."""

    def align(self, wave: np.ndarray, text: str, language: str) -> tuple[Word, ...]:
        """The words of `text` in order, with seconds, of float32 [samples] at 16 kHz; () where they cannot be found."""
        ...

    def identity(self) -> str:
        """What decides the times beside sound and text, for content hashes."""
        ...
