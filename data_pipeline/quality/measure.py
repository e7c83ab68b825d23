"""What a measure of quality is."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from data_pipeline.utterance import Utterance


class Measure(Protocol):
    """Numbers about one utterance. `columns` names them; a name is lower case letters, digits and `_`."""

    columns: tuple[str, ...]

    def measure(self, wave: np.ndarray, utterance: Utterance) -> dict[str, float]:
        """Values by column, of float32 [samples] at 16 kHz; a column that does not apply is left out."""
        ...

    def identity(self) -> str:
        """What decides the values beside the sound, for content hashes: weights and versions."""
        ...
