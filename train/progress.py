"""How far a run is: what a checkpoint keeps beside parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from data_pipeline.batch import Pack
from data_pipeline.sample_bytes import DAMAGE_KINDS
from data_pipeline.vocabulary import Vocabulary

_KINDS = (*DAMAGE_KINDS, "other")


@dataclass
class Progress:
    """Totals since the first step, over all ranks. tokens leaves padding out; validated is the last validated step;
    damaged is how many samples were left out, by kind, those included that were read ahead."""

    step: int = 0
    tokens: int = 0
    audio_seconds: float = 0.0
    validated: int = -1
    damaged: dict[str, int] = field(default_factory=dict)
    guard: dict[str, Any] = field(default_factory=dict)  # `resilience.guard.Guard.state`, as of the last save

    def state(self) -> dict[str, Any]:
        return asdict(self)

    def add(self, fed: Tally) -> None:
        """Count a step that fed `fed`, over all ranks."""
        self.step += 1
        self.tokens += int(fed.tokens)
        self.audio_seconds += fed.audio_seconds
        self.leave_out(fed)

    def leave_out(self, fed: Tally) -> None:
        """Count the damage alone of a step that was fed and not learned from."""
        for kind, count in fed.damaged.items():
            self.damaged[kind] = self.damaged.get(kind, 0) + count


@dataclass(frozen=True)
class Tally:
    """What one step fed the model, and the samples found damaged meanwhile, by kind. As a list of numbers it sums over
    data-parallel ranks."""

    tokens: float
    padding: float
    audio_seconds: float
    attended: float  # summed over tokens: how many tokens each one attends to
    modalities: tuple[float, ...]  # tokens of each modality
    damaged: dict[str, int]

    def numbers(self) -> list[float]:
        named = [float(self.damaged.get(kind, 0)) for kind in DAMAGE_KINDS]
        other = float(sum(self.damaged.values())) - sum(named)
        return [self.tokens, self.padding, self.audio_seconds, self.attended, *named, other, *self.modalities]

    @classmethod
    def from_numbers(cls, numbers: list[float]) -> Tally:
        tokens, padding, audio_seconds, attended, *rest = numbers
        counts = zip(_KINDS, rest[: len(_KINDS)], strict=True)
        damaged = {kind: round(count) for kind, count in counts if count}
        return cls(tokens, padding, audio_seconds, attended, tuple(rest[len(_KINDS) :]), damaged)


def tally(packs: list[Pack], vocabulary: Vocabulary, damaged: Mapping[str, int]) -> Tally:
    """Count the tokens of `packs`; a place with several columns is one token, of all the modalities it has.

    `damaged`: samples found damaged since the last step, by kind.
    """
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
        damaged=dict(damaged),
    )
