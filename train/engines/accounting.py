"""What a step adds up over all ranks: counts before its first forward pass, losses after its last."""

from __future__ import annotations

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from data_pipeline.batch import Batch
from train.engines.protocol import Objective, Outcome
from train.observe.phases import COMMUNICATION
from train.observe.stopwatch import Stopwatch


class StepAccount:
    """The sums and counts of one step or validation pass; all ranks open one and close it together.

    One rank of each model replica, the first tensor-parallel one of the last stage, speaks for it; under context
    parallelism each for its part of the row, and the first one alone for what is not a row's (`extra`). Every loss is
    divided by the count of the whole global batch: gradients are to be summed over data-parallel ranks, not averaged.
    """

    def __init__(
        self,
        objective: Objective,
        batches: list[Batch],
        extra: list[float],
        device: torch.device,
        stopwatch: Stopwatch | None = None,
    ) -> None:
        """`stopwatch`: whose communication the sums over ranks are."""
        self._objective = objective
        self._speaks = parallel_state.is_pipeline_last_stage() and parallel_state.get_tensor_model_parallel_rank() == 0
        self._seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._sums = torch.zeros(objective.terms, dtype=torch.float64, device=device)
        self._totals = torch.zeros(objective.terms + len(extra), dtype=torch.float64, device=device)
        if self._speaks:
            for batch in batches:
                self._totals[: objective.terms] += objective.counts(batch)
            if parallel_state.get_context_parallel_rank() == 0:
                self._totals[objective.terms :] = torch.tensor(extra, dtype=torch.float64)
        self._stopwatch = stopwatch or Stopwatch(device)
        with self._stopwatch.phase(COMMUNICATION):
            dist.all_reduce(self._totals)
        self._count = self._totals[: objective.terms].sum().clamp(min=1e-9).float()

    def loss(self, batch: Batch, losses: torch.Tensor) -> torch.Tensor:
        """This micro-batch's share of the step's loss, a scalar to differentiate; losses: each token's, [1, N]."""
        if self._speaks:
            self._sums.add_(self._objective.sums(losses, batch))
        total = self._objective.total(losses, batch)
        self._seen.append((total.detach(), self._objective.counts(batch).sum()))
        return total / self._count

    def averages(self) -> list[float]:
        """The average loss of each micro-batch of this rank; empty where the last layer is elsewhere."""
        return [float(total) / max(float(count), 1e-9) for total, count in self._seen]

    def close(self, gradient_norm: float | None) -> Outcome:
        """The figures of all ranks."""
        with self._stopwatch.phase(COMMUNICATION):
            dist.all_reduce(self._sums)
        known, terms = self._totals.tolist(), self._objective.terms
        return Outcome(self._sums.tolist(), known[:terms], gradient_norm, known[terms:])


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether any rank raised its flag: the same answer on all ranks."""
    raised = torch.tensor([float(flag)], device=device)
    dist.all_reduce(raised, op=dist.ReduceOp.MAX)
    return bool(raised.item())
