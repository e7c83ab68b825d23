"""How far a head is from a teacher at each place, over the tokens that can stand there (Hinton et al., 1503.02531).

A place is asked about one range of rows R: where its label is an audio code, those of the codebook that is due, else
those of text and special tokens. With x = W h over R, temperature T, q = softmax(x / T) over R, and the teacher's p
over R at the same temperature, of which its k likeliest ids K are known and the mass r of all others:

    KL  = sum_{i in K} p_i (log p_i - log q_i) + r (log r - log q_r),    q_r = sum_{j in R, not in K} q_j
    d KL / d x_j = (q_j - p_j) / T for j in K,    (q_j - r q_j / q_r) / T for the others

The tail is one outcome: the student is held to its mass, not to how it is spread. By the log-sum inequality this is
never above the KL over all of R, and equal to it where K covers R or both spread the tail alike.

Only rows of R are multiplied: those of audio are few beside a vocabulary of text. As in `vocabulary_loss`, what is
differentiated is a sum with weights known beforehand, so gradients are made at once, a chunk of places at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from data_pipeline.batch import sent
from train.models.gradients import add_product, buffer_of


@dataclass(frozen=True)
class TaughtRange:
    """What a teacher says at n places, over the vocabulary's rows `start` to `stop`.

    places: int64 [n], of the micro-batch; weights: float32 [n], of each in the sum that is differentiated; ids: int64
    [n, k], each at most once in a row, -1 where fewer are known; chances: float32 [n, k + 1], p of the ids (0 for -1)
    and last r, which add up to 1.
    """

    start: int
    stop: int
    places: torch.Tensor
    weights: torch.Tensor
    ids: torch.Tensor
    chances: torch.Tensor


@dataclass(frozen=True)
class Taught:
    """What a teacher says over one micro-batch, each place in one range at most; chunk: places at a time, 0: all."""

    ranges: tuple[TaughtRange, ...]
    temperature: float = 1.0
    chunk: int = 0

    def to(self, device: torch.device) -> Taught:
        """A copy on `device`, without waiting for it."""
        return replace(
            self,
            ranges=tuple(
                replace(
                    part,
                    places=sent(part.places, device),
                    weights=sent(part.weights, device),
                    ids=sent(part.ids, device),
                    chances=sent(part.chances, device),
                )
                for part in self.ranges
            ),
        )


def distillation_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    taught: Taught,
    group: dist.ProcessGroup | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted sum of the KL over all places, and the KL of each, detached [N], 0 where nothing is taught.

    hidden: [N, h]; weight: [V / TP, h], this rank's rows of the vocabulary; group: as in `vocabulary_loss`, and so are
    the gradients, but that an engine whose gradients go to a buffer has to get its stand-in from another use of the
    weight: the cross entropy. Both results are of at least fp32 and equal on all ranks.
    """
    learning = torch.is_grad_enabled()
    wanted = (learning and hidden.requires_grad, learning and weight.requires_grad)
    total, each = _DistillationLoss.apply(hidden, weight, taught, group, wanted)
    return total, each


class _DistillationLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        taught: Taught,
        group: dist.ProcessGroup | None,
        wanted: tuple[bool, bool],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        exact = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=exact, device=hidden.device)
        each = torch.zeros(len(hidden), dtype=exact, device=hidden.device)
        of_hidden = torch.zeros_like(hidden) if wanted[0] else None
        of_rows: list[tuple[slice, torch.Tensor]] = []
        first = len(weight) * (dist.get_rank(group) if group is not None else 0)
        for part in taught.ranges:
            here = slice(*(min(max(row - first, 0), len(weight)) for row in (part.start, part.stop)))
            rows = weight[here]
            sums = torch.zeros(rows.shape, dtype=exact, device=rows.device) if wanted[1] else None
            for chunk in _chunks(len(part.places), taught.chunk):
                places, scale = part.places[chunk], part.weights[chunk].to(exact)
                states = hidden[places]
                scaled = torch.zeros((len(states), len(rows)), dtype=exact, device=hidden.device)
                add_product(states, rows.t(), scaled)
                scaled.div_(taught.temperature)
                column = part.ids[chunk] - (first + here.start)
                chances = part.chances[chunk].to(exact)
                divergence = _divergence(scaled, part.ids[chunk] >= 0, column, chances, group, any(wanted))
                each[places] = divergence
                total += (scale * divergence).sum()
                if any(wanted):
                    slopes = scaled.mul_((scale / taught.temperature)[:, None]).to(hidden.dtype)
                    if of_hidden is not None:
                        of_hidden[places] = slopes @ rows
                    if sums is not None:
                        add_product(slopes.t(), states, sums)
            if sums is not None:
                of_rows.append((here, sums))
        ctx.of_hidden, ctx.of_rows, ctx.weight, ctx.shape = of_hidden, of_rows, weight, weight.shape
        ctx.mark_non_differentiable(each)
        return total, each

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: torch.Tensor, *_: Any) -> tuple[Any, ...]:
        if ctx.of_rows is None:
            raise RuntimeError("the distillation loss was differentiated before, and its gradients are used up")
        hidden = None if ctx.of_hidden is None else ctx.of_hidden.mul_(scale)
        weight = _handed_over(ctx, scale) if ctx.needs_input_grad[1] else None
        ctx.of_hidden = ctx.of_rows = ctx.weight = None
        return hidden, weight, None, None, None


def _handed_over(ctx: Any, scale: torch.Tensor) -> torch.Tensor | None:
    """`scale` times the weight's gradient, for autograd; where the engine has a buffer, it goes there."""
    buffer = buffer_of(ctx.weight)
    kept = ctx.weight.new_zeros(ctx.shape) if buffer is None else buffer
    for rows, gradient in ctx.of_rows:
        kept[rows].addcmul_(gradient.to(kept.dtype), scale.to(kept.dtype))
    return kept if buffer is None else None


def _chunks(count: int, size: int) -> Sequence[slice]:
    step = max(min(size or count, count), 1)
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def _divergence(
    scaled: torch.Tensor,
    known: torch.Tensor,
    column: torch.Tensor,
    chances: torch.Tensor,
    group: dist.ProcessGroup | None,
    slopes: bool,
) -> torch.Tensor:
    """KL of n places, [n]; `scaled`, x / T over this rank's rows of the range [n, m], becomes d KL / d (x / T) where
    `slopes` are asked for. known: bool [n, k]; column: of each id here, outside 0..m where it is another rank's."""
    here = known & (column >= 0) & (column < scaled.shape[1])
    if scaled.shape[1]:
        safe = torch.where(here, column, 0)
        mine = torch.where(here, scaled.gather(1, safe), -torch.inf)
        others = scaled.scatter_add(1, safe, torch.where(here, -torch.inf, 0.0).to(scaled.dtype))
        student = torch.cat([mine, others.logsumexp(1, keepdim=True)], dim=1)
    else:
        student = torch.full_like(chances, -torch.inf)
    # Of x / T: the known ids', and the log of the others' sum. One exchange a chunk, of k + 1 numbers a place.
    if group is not None:
        everyone = student.new_empty((dist.get_world_size(group) * len(student), student.shape[1]))
        dist.all_gather_into_tensor(everyone, student.contiguous(), group=group)
        student = everyone.view(-1, *student.shape).logsumexp(0)
    log_z = student.logsumexp(1, keepdim=True)
    divergence = torch.where(chances > 0, chances * (chances.log() - student + log_z), 0.0).sum(1)
    if slopes and scaled.shape[1]:
        rest = chances[:, -1:]
        shift = torch.where(rest > 0, rest.log() - student[:, -1:], -torch.inf)  # others' p as the student spreads it
        scaled.sub_(log_z).exp_().sub_(others.add_(shift).exp_())
        scaled.scatter_add_(1, safe, torch.where(here, -chances[:, :-1], 0.0))
    return divergence
