"""What the loop asks of an engine. An engine knows neither the data nor where checkpoints are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from data_pipeline.batch import Batch
from train.models.heads.terms import Losses, Targets
from train.models.initialise import BeginRows
from train.models.replicated import Replicated
from train.models.routing import Routing
from train.trainable import Trained


@dataclass(frozen=True)
class Outcome:
    """Global figures of one step or one validation pass, equal on all ranks.

    sums, counts: of the objective's terms; gradient_norm: before clipping,
    None without a backward pass; extra: the sums over all data-parallel ranks of what each rank handed in.

    seconds: this rank's own, how long each of `train.observe.phases.ENGINE_PHASES` took; norms: of groups of
    parameters as "grad/<group>" (before clipping), "param/<group>" and "update/<group>", where they were asked for;
    routing: of a model that has experts.
    """

    sums: list[float]
    counts: list[float]
    gradient_norm: float | None
    extra: list[float]
    seconds: Mapping[str, float] = field(default_factory=dict)
    norms: Mapping[str, float] = field(default_factory=dict)
    routing: Routing = field(default_factory=Routing)


@dataclass(frozen=True)
class Evidence:
    """What this rank alone saw in its last training step: the average loss of each micro-batch, in order (empty where
    the last layer is elsewhere), and whether its own gradients were finite before they were summed over ranks (None:
    they were summed as they came, so nobody can tell)."""

    losses: list[float]
    finite_gradients: bool | None


class Objective(Protocol):
    """What a stage minimises: named terms, `terms` of them, each a sum with a count of its own."""

    @property
    def terms(self) -> int: ...

    def targets(self, batch: Batch) -> Targets | Any:
        """What `run` asks the model of a batch; both on the CPU. An `OwnModel`'s are its own: anything with `to`."""

    def counts(self, batch: Batch) -> torch.Tensor:
        """float64 [terms]; known from the batch alone."""

    def sums(self, losses: Losses, batch: Batch) -> torch.Tensor:
        """float64 [terms], detached; losses: what `run` returned."""

    def loss(self, losses: Losses, batch: Batch, counts: torch.Tensor) -> torch.Tensor:
        """The scalar to differentiate for one micro-batch; counts: float64 [terms] of the whole global batch.

        Added up over all micro-batches of all data-parallel ranks it is the loss of the step.
        """


@runtime_checkable
class OwnModel(Protocol):
    """An objective of another model than SpeechLM: one that every rank holds whole
    (`train.models.replicated.Replicated`)."""

    def build(self) -> Replicated:
        """The model on the CPU, its weights drawn by torch's global generator."""

    def run(self, model: torch.nn.Module, batch: Batch, targets: Any) -> Losses:
        """Forward a batch through what `build` made, or a wrapper around it; `targets` are the objective's own."""


class Engine(Protocol):
    data_rank: int
    data_size: int
    trained: Trained  # what of the model this stage trains, and in which groups

    def train_step(
        self,
        batches: list[Batch],
        learning_rate: float,
        extra: list[float],
        accept: Callable[[Outcome], bool],
        *,
        norms: bool = False,
    ) -> Outcome:
        """One optimiser step over this rank's micro-batches, an equal number on every rank; `norms`: with norms by
        group.

        `accept` is called once on every rank, when losses and gradient norm are known and before anything is updated.
        Where it answers no, which it does on all ranks or on none, parameters and optimiser state stay as they were.
        """

    def evidence(self) -> Evidence:
        """What this rank saw in its last training step."""

    def evaluate(self, batches: list[Batch], extra: list[float], objective: Objective | None = None) -> Outcome:
        """Losses of the micro-batches, without learning from them; `objective`: another one than the stage's."""

    def place_rows(self, first: int, begin_rows: BeginRows, text_rows: int) -> None:
        """Set vocabulary rows `first`.. to what `begin_rows` makes of the text rows' mean and covariance."""

    def logits(self, batch: Batch) -> torch.Tensor | None:
        """Logits over the whole vocabulary, fp32 [1, N, V], where the last layer is; None on other ranks."""

    def any(self, flag: bool) -> bool:
        """Whether any rank raised its flag: the same answer on all ranks."""

    def sharded_state(self, *, optimizer: bool, loading: bool) -> dict[str, Any]:
        """Parameters (and optimiser state) as sharded tensors under the keys "model" and "optimizer".

        Not `loading`, they may be the live tensors, but none that changes before the next training step asks `accept`:
        what changes in a forward pass, as buffers may, is a copy.
        """

    def load_state(self, state: dict[str, Any], *, optimizer: bool) -> None:
        """Take what was read into a `sharded_state(loading=True)`, the optimiser's part of it or only parameters."""


@runtime_checkable
class OwnForm(Protocol):
    """An engine whose library has a checkpoint form of its own, with tools that read it."""

    def save_own(self, folder: Path, step: int) -> None:
        """Write the state as it is now in that form, under a name of its step in `folder`; all ranks call this and wait
        until it is there whole. Raises BadInput on all of them where the disk fails."""
