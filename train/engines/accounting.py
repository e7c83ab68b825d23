"""What a step adds up over all ranks: counts before its first forward pass, losses after its last."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from data_pipeline.batch import Batch, sent
from train.engines.protocol import Objective, Outcome
from train.models.heads.terms import Losses, Targets
from train.observe.phases import COMMUNICATION
from train.observe.stopwatch import Stopwatch


@dataclass(frozen=True)
class Asked:
    """One micro-batch of a step, on the device: what is asked of the model, and the objective's own counts of it."""

    batch: Batch
    targets: Targets
    counts: torch.Tensor


class StepAccount:
    """The sums and counts of one step or validation pass; all ranks open one and close it together.

    One rank of each model replica, the first tensor-parallel one of the last stage, speaks for it; under context
    parallelism each for its part of the row, and the first one alone for what is not a row's (`extra`). Every loss is
    divided by the counts of the whole global batch: gradients are to be summed over data-parallel ranks, not averaged.
    """

    def __init__(
        self,
        objective: Objective,
        batches: list[Batch],
        extra: list[float],
        device: torch.device,
        stopwatch: Stopwatch | None = None,
    ) -> None:
        """batches: this rank's micro-batches, on the CPU. stopwatch: whose communication the sums over ranks are."""
        self._objective = objective
        self._speaks = parallel_state.is_pipeline_last_stage() and parallel_state.get_tensor_model_parallel_rank() == 0
        self._seen: list[torch.Tensor] = []
        self._terms = objective.terms
        counts = torch.stack([objective.counts(batch) for batch in batches])
        known = torch.zeros(self._terms + 1 + len(extra), dtype=torch.float64)
        if self._speaks:
            known[: self._terms] = counts.sum(0)
            known[self._terms] = sum(_real(batch) for batch in batches)
            if parallel_state.get_context_parallel_rank() == 0:
                known[self._terms + 1 :] = torch.tensor(extra, dtype=torch.float64)
        self._sums = torch.zeros(self._terms, dtype=torch.float64, device=device)
        self._totals = sent(known, device)
        self._stopwatch = stopwatch or Stopwatch(device)
        with self._stopwatch.phase(COMMUNICATION):
            dist.all_reduce(self._totals)
        self.asked = [
            Asked(batch.to(device), objective.targets(batch).to(device), own)
            for batch, own in zip(batches, sent(counts, device), strict=True)
        ]
        self.tokens = batches[0].tokens.shape[1]
        self.real = self._totals[self._terms]  # tokens of the global batch without padding, a scalar on the device

    def loss(self, asked: Asked, losses: Losses) -> torch.Tensor:
        """This micro-batch's share of the step's loss, a scalar to differentiate; losses: what `run` answered."""
        if self._speaks:
            self._sums.add_(self._objective.sums(losses, asked.batch))
        self._seen.append(self._objective.loss(losses, asked.batch, asked.counts).detach())
        return self._objective.loss(losses, asked.batch, self._totals[: self._terms])

    def averages(self) -> list[float]:
        """The average loss of each micro-batch of this rank; empty where the last layer is elsewhere."""
        return [float(loss) for loss in self._seen]

    def close(self, gradient_norm: float | None) -> Outcome:
        """The figures of all ranks."""
        with self._stopwatch.phase(COMMUNICATION):
            dist.all_reduce(self._sums)
        known, terms = self._totals.tolist(), self._terms
        return Outcome(self._sums.tolist(), known[:terms], gradient_norm, known[terms + 1 :])


def _real(batch: Batch) -> int:
    """Tokens of this rank's part of a micro-batch without padding."""
    return batch.tokens.shape[1] if batch.packs is None else int((batch.packs >= 0).sum())


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether any rank raised its flag: the same answer on all ranks."""
    raised = torch.tensor([float(flag)], device=device)
    dist.all_reduce(raised, op=dist.ReduceOp.MAX)
    return bool(raised.item())
