"""What a codec is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from data_pipeline.vocabulary import Codebook


class Codec(Protocol):
    """Waveform to codes. `codebooks` are in the order of their id ranges; `sample_rate` is what `encode` wants."""

    codebooks: tuple[Codebook, ...]
    sample_rate: int

    def encode(self, waves: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        """Codes of each wave (float32 [samples] at `sample_rate`) by codebook: int32 [rows, frames], frames = rate x
        duration, rounded as the codec does. A wave's codes do not depend on the others."""
        ...

    def identity(self) -> str:
        """What decides the codes beside the sound, for content hashes: weights and settings."""
        ...


class Stream(Protocol):
    """One wave encoded as it comes, with what it takes of the past kept between calls."""

    def encode(self, wave: np.ndarray, *, last: bool = False) -> dict[str, np.ndarray]:
        """Codes that `wave`, float32 [samples] that follow those given before, makes certain: int32 [rows, frames],
        frames possibly 0, by codebook. `last` ends the stream: end to end, what it gave is then what `Codec.encode`
        gives for the whole wave. Codecs that can stream have `stream() -> Stream`."""
        ...
