"""How far a run is: what a checkpoint keeps beside parameters."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data_pipeline.batch import Pack
from data_pipeline.vocabulary import Vocabulary


@dataclass
class Progress:
    """Totals since the first step, over all ranks. tokens leaves padding out; validated is the last validated step."""

    step: int = 0
    tokens: int = 0
    audio_seconds: float = 0.0
    validated: int = -1

    def state(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Tally:
    """What one step fed the model. As a list of numbers it sums over data-parallel ranks."""

    tokens: float
    padding: float
    audio_seconds: float
    attended: float  # summed over tokens: how many tokens each one attends to
    modalities: tuple[float, ...]  # tokens of each modality

    def numbers(self) -> list[float]:
        return [self.tokens, self.padding, self.audio_seconds, self.attended, *self.modalities]

    @classmethod
    def from_numbers(cls, numbers: list[float]) -> Tally:
        tokens, padding, audio_seconds, attended, *modalities = numbers
        return cls(tokens, padding, audio_seconds, attended, tuple(modalities))


def tally(packs: list[Pack], vocabulary: Vocabulary) -> Tally:
    """Count the tokens of `packs`; a place with several columns is one token, of all the modalities it has."""
    real = [pack.tokens[: len(pack.tokens) - pack.padding] for pack in packs]
    modalities = sum(
        (np.bincount(vocabulary.modality_of(ids[ids >= 0]), minlength=len(vocabulary.modalities)) for ids in real),
        start=np.zeros(len(vocabulary.modalities)),
    )
    lengths = np.concatenate([np.asarray(pack.lengths[: len(pack.keys)], dtype=np.float64) for pack in packs])
    return Tally(
        tokens=float(sum(len(ids) for ids in real)),
        padding=float(sum(pack.padding for pack in packs)),
        audio_seconds=float(sum(pack.audio_seconds for pack in packs)),
        attended=float((lengths * (lengths + 1) / 2).sum()),
        modalities=tuple(modalities.tolist()),
    )
