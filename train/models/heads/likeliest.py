"""The likeliest tokens at some places, over a tensor-parallel vocabulary whose logits never exist all at once.

A place is asked about one range of rows R, as in `distillation_loss`: with x = W h over R and temperature T, wanted are
the k largest of log q = x / T - log Z, log Z = log sum_{j in R} exp (x_j / T). Each tensor-parallel rank has a part of
R; it tells its own k largest x / T and its own log sum, and what all ranks tell has the k largest of R in it. So a
place costs an exchange of k + 1 numbers and k ids a rank, whatever the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

from data_pipeline.batch import sent
from train.models.gradients import add_product


@dataclass(frozen=True)
class AskedRange:
    """places: int64 [n], of the micro-batch, that are asked about the vocabulary's rows `start` to `stop`."""

    start: int
    stop: int
    places: torch.Tensor


@dataclass(frozen=True)
class Asked:
    """What a head is asked about one micro-batch; chunk: places at a time, 0: all of a range."""

    ranges: tuple[AskedRange, ...]
    top_k: int
    temperature: float = 1.0
    chunk: int = 0

    def to(self, device: torch.device) -> Asked:
        """A copy on `device`, without waiting for it."""
        ranges = tuple(replace(part, places=sent(part.places, device)) for part in self.ranges)
        return replace(self, ranges=ranges)


@dataclass(frozen=True)
class Likeliest:
    """Of n places. ids: int64 [n, k], likeliest first, -1 where a range has fewer rows; log_chances: fp32 [n, k], log q
    of the ids, -inf there."""

    ids: torch.Tensor
    log_chances: torch.Tensor


@torch.no_grad()
def likeliest(
    hidden: torch.Tensor, weight: torch.Tensor, asked: Asked, group: dist.ProcessGroup | None = None
) -> tuple[Likeliest, ...]:
    """What each of the ranges that are asked about has, equal on all ranks.

    hidden: [N, h]; weight: [V / TP, h], this rank's rows of the vocabulary; group: the tensor-parallel ranks, in order
    of their rows, None: all rows are here. Logits are fp32 at least, whatever the weights are.
    """
    answers = []
    before = len(weight) * (dist.get_rank(group) if group is not None else 0)  # rows of the ranks before this one
    for part in asked.ranges:
        low, high = (min(max(row - before, 0), len(weight)) for row in (part.start, part.stop))
        found = [
            _of_chunk(hidden[places], weight[low:high], before + low, asked, group)
            for places in part.places.split(asked.chunk or max(len(part.places), 1))
        ]
        ids, log_chances = (torch.cat(held) for held in zip(*found, strict=True))
        answers.append(Likeliest(ids, log_chances.float()))
    return tuple(answers)


def _of_chunk(
    states: torch.Tensor, rows: torch.Tensor, first: int, asked: Asked, group: dist.ProcessGroup | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and log q, [n, k] each, of states [n, h] over a range, of which `rows` [m, h], from id `first` on, are this
    rank's."""
    exact = torch.promote_types(states.dtype, torch.float32)
    scaled = torch.zeros((len(states), len(rows)), dtype=exact, device=states.device)
    add_product(states, rows.t(), scaled)
    scaled.div_(asked.temperature)
    log_z = scaled.logsumexp(1) if len(rows) else scaled.new_full((len(states),), -torch.inf)
    ids = torch.full((len(states), asked.top_k), -1, dtype=torch.int64, device=states.device)
    values = torch.full_like(ids, -torch.inf, dtype=exact)
    width = min(asked.top_k, len(rows))
    mine = scaled.topk(width)
    ids[:, :width], values[:, :width] = mine.indices + first, mine.values
    if group is not None and dist.get_world_size(group) > 1:
        told = _gathered(torch.cat([values, log_z[:, None]], dim=1), group)
        log_z = told[..., -1].logsumexp(0)
        values, order = told[..., :-1].movedim(0, 1).flatten(1).topk(asked.top_k)
        ids = _gathered(ids, group).movedim(0, 1).flatten(1).gather(1, order)
    return ids, values - log_z[:, None]


def _gathered(mine: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """What each rank has, [ranks, *shape]."""
    everyone = mine.new_empty((dist.get_world_size(group), *mine.shape))
    dist.all_gather_into_tensor(everyone.flatten(0, 1), mine.contiguous(), group=group)
    return everyone
