"""What the loop asks of an engine. An engine knows neither the data nor where checkpoints are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from data_pipeline.batch import Batch


@dataclass(frozen=True)
class Outcome:
    """Global figures of one step or one validation pass, equal on all ranks.

    sums, counts: per modality, summed weighted losses in nats and summed weights; gradient_norm: before clipping,
    None without a backward pass; extra: the sums over all data-parallel ranks of what each rank handed in.
    """

    sums: list[float]
    counts: list[float]
    gradient_norm: float | None
    extra: list[float]


class Engine(Protocol):
    data_rank: int
    data_size: int

    def train_step(self, batches: list[Batch], learning_rate: float, extra: list[float]) -> Outcome:
        """One optimiser step over this rank's micro-batches, an equal number on every rank."""

    def evaluate(self, batches: list[Batch], extra: list[float]) -> Outcome:
        """Losses of the micro-batches, without learning from them."""

    def any(self, flag: bool) -> bool:
        """Whether any rank raised its flag: the same answer on all ranks."""

    def sharded_state(self, *, optimizer: bool, loading: bool) -> dict[str, Any]:
        """Parameters (and optimiser state) as sharded tensors under the keys "model" and "optimizer"."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Take what was read into a `sharded_state(loading=True)`."""
