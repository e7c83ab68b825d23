"""What the loop and the journal ask of an objective, beside what the engines do."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch

from data_pipeline.batch import Batch
from train.engines.protocol import Objective
from train.models.heads.terms import Losses, Targets


class StageObjective(Objective, Protocol):
    """An objective as a stage uses it: `averages` names its terms."""

    @property
    def main(self) -> str:
        """The term that is told as the loss, and that spikes are looked for in."""

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources of the mixture that it tells apart: `collate` numbers their places for it."""

    def averages(self, sums: list[float], counts: list[float]) -> dict[str, float]:
        """Global averages by name, `main` among them, of what an engine added up; a term without a count is left
        out."""


@runtime_checkable
class Referring(Protocol):
    """An objective that compares answers with what the weights say that the stage begins with."""

    @property
    def references(self) -> dict[str, tuple[float, float]]:
        """Log-probabilities of both answers under those weights, by `preference.pair_of`; filled before the first
        loss."""

    def targets(self, batch: Batch) -> Targets: ...

    def log_probabilities(self, losses: Losses, batch: Batch) -> torch.Tensor:
        """Of the answers of each pair: float64 [pairs, 2]."""
