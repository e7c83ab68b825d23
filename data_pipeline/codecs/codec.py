"""What a codec is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from data_pipeline.vocabulary import Codebook


class Codec(Protocol):
    """Waveform to codes. `codebooks` are in the order of their id ranges."""

    codebooks: tuple[Codebook, ...]

    def encode(self, waves: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        """Codes of each wave (float32 [samples], 16 kHz) by codebook: int32 [1, frames], frames = rate x duration,
        rounded down. A wave's codes do not depend on the others."""
        ...
