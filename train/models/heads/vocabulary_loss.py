"""Cross entropy over a large, tensor-parallel vocabulary whose logits never exist all at once.

For a place with hidden state h, label y and K rows of the vocabulary (padding included), x = W h and
log Z = log sum_k exp x_k:

    cross entropy     c = log Z - x_y
    label smoothing   s = (1 - e) c + e (log Z - mean_k x_k)         Szegedy et al., 1512.00567, section 7
    z-loss            l = s + a (log Z)^2                            Chowdhery et al. (PaLM), 2204.02311, section 5
    gradient          dl/dx_k = p_k (1 + 2 a log Z) - (1 - e) [k = y] - e / K,    p = softmax x

Places are taken a chunk at a time. What is differentiated is a sum over places with weights known beforehand, so
a chunk's gradients are made at once, while its logits are there, and only scaled by the one number that comes down in
the backward pass. That is three matrix products, as many as with all logits kept; making the logits a second time in
the backward pass would take four. The price is that the head's gradient [V / TP, h] and the hidden states' [N, h] live
from the forward pass on; on the last pipeline stage the backward pass follows the forward pass of its micro-batch at
once, and would allocate both itself while every activation is still there, so the peak is no higher.

An objective that is no such sum, as one of sequences' probabilities, has weights only when its own gradient comes down.
Its losses place by place (`place_losses`) cost the fourth product.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from train.models.gradients import add_product, buffer_of, stand_in
from train.models.heads.softmax_passes import first_pass, second_pass
from train.models.heads.terms import Targets


@dataclass(frozen=True)
class _Gradients:
    """What the backward pass scales; None for what nobody asked."""

    hidden: torch.Tensor | None
    weight: torch.Tensor | None


def vocabulary_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: Targets,
    group: dist.ProcessGroup | None = None,
    *,
    used_again: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The weighted sum of l over the places of `targets`, and of each place c and (log Z)^2.

    hidden: [N, h]; weight: [V / TP, h], this rank's rows of the vocabulary, both of one float dtype; group: the
    tensor-parallel ranks, in order of their rows, None: all rows are here. Hidden states are equal on all ranks; their
    gradient here is this rank's part of a sum over the ranks, which the caller adds up. used_again: the backward pass
    comes to another use of the weight after this one. Returns a scalar, differentiable once, and two detached [N], all
    of at least fp32, equal on all ranks.
    """
    learning = torch.is_grad_enabled()
    wanted = (learning and hidden.requires_grad, learning and weight.requires_grad)
    total, cross_entropy, z = _VocabularyLoss.apply(hidden, weight, targets, group, wanted, used_again)
    return total, cross_entropy, z


def place_losses(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: Targets,
    group: dist.ProcessGroup | None = None,
    *,
    used_again: bool = False,
) -> torch.Tensor:
    """The cross entropy of each place, at least fp32 [N], 0 where none is wanted, differentiable once each by itself;
    weights, smoothing and z of `targets` play no part. Arguments, and gradients, are those of `vocabulary_loss`."""
    learning = torch.is_grad_enabled()
    wanted = (learning and hidden.requires_grad, learning and weight.requires_grad)
    plain = replace(targets, weights=torch.zeros_like(targets.weights), smoothing=0.0, z=0.0)
    losses: torch.Tensor = _PlaceLosses.apply(hidden, weight, plain, group, wanted, used_again)
    return losses


class _VocabularyLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: Targets,
        group: dist.ProcessGroup | None,
        wanted: tuple[bool, bool],
        used_again: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        total, cross_entropy, z, gradients = _chunk_by_chunk(hidden, weight, targets, group, wanted)
        ctx.gradients, ctx.weight, ctx.used_again = gradients, weight, used_again
        ctx.mark_non_differentiable(cross_entropy, z)
        return total, cross_entropy, z

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: torch.Tensor, *_: Any) -> tuple[Any, ...]:
        gradients: _Gradients | None = ctx.gradients
        if gradients is None:
            raise RuntimeError("the vocabulary loss was differentiated before, and its gradients are used up")
        ctx.gradients = None
        hidden = None if gradients.hidden is None else gradients.hidden.mul_(scale)
        weight = None if gradients.weight is None else _handed_over(gradients.weight, scale, ctx)
        ctx.weight = None
        return hidden, weight, None, None, None, None


class _PlaceLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: Targets,
        group: dist.ProcessGroup | None,
        wanted: tuple[bool, bool],
        used_again: bool,
    ) -> torch.Tensor:
        ctx.save_for_backward(hidden)
        ctx.weight, ctx.used_again, ctx.asked = weight, used_again, (targets, group, wanted)
        return _chunk_by_chunk(hidden, weight, targets, group, (False, False))[1]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scales: torch.Tensor) -> tuple[Any, ...]:
        targets, group, wanted = ctx.asked
        (hidden,) = ctx.saved_tensors
        *_, gradients = _chunk_by_chunk(hidden, ctx.weight, replace(targets, weights=scales), group, wanted)
        weight = None if gradients.weight is None else _handed_over(gradients.weight, scales.new_ones(()), ctx)
        ctx.weight = None
        return gradients.hidden, weight, None, None, None, None


def _chunk_by_chunk(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: Targets,
    group: dist.ProcessGroup | None,
    wanted: tuple[bool, bool],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, _Gradients]:
    """What `vocabulary_loss` returns, and the gradients of the sum, of hidden states and weight where `wanted`."""
    exact = torch.promote_types(hidden.dtype, torch.float32)
    labels, weights, places = targets.labels.reshape(-1), targets.weights.reshape(-1).to(exact), targets.places
    total = torch.zeros((), dtype=exact, device=hidden.device)
    cross_entropy, z = (torch.zeros(len(hidden), dtype=exact, device=hidden.device) for _ in range(2))
    count = len(hidden) if places is None else len(places)
    new = torch.empty if count else torch.zeros
    gradients = _Gradients(
        torch.zeros_like(hidden) if wanted[0] else None,
        new(weight.shape, dtype=exact, device=weight.device) if wanted[1] else None,
    )
    size = min(targets.chunk or count, count)
    room = torch.empty((size, len(weight)), dtype=exact, device=hidden.device)  # for one chunk's logits after another
    for start in range(0, count, max(size, 1)):
        part: Any = slice(start, min(count, start + size))
        if places is not None:
            part = places[part]
        states, scale = hidden[part], weights[part]
        logits = _product(states, weight.t(), room[: len(states)])
        row = _row_here(labels[part], len(weight), group)
        log_z, chosen, mean, top = _statistics(logits, row, targets.smoothing > 0, group)
        cross_entropy[part], z[part] = log_z - chosen, log_z.square()
        smoothed = log_z - (1 - targets.smoothing) * chosen - targets.smoothing * mean
        total += (scale * (smoothed + targets.z * log_z.square())).sum()
        if any(wanted):
            factor = scale * (1 + 2 * targets.z * log_z)
            uniform = scale * targets.smoothing / _rows(weight, group) if targets.smoothing else None
            drop = (1 - targets.smoothing) * scale
            # Not held by a name: the next chunk's would be made beside it.
            _add_gradients(
                gradients,
                second_pass(logits, top, log_z, row, factor, uniform, drop, hidden.dtype),
                *(states, weight, part, start == 0),
            )
    return total, cross_entropy, z, gradients


def _handed_over(gradient: torch.Tensor, scale: torch.Tensor, ctx: Any) -> torch.Tensor | None:
    """`scale` times the weight's gradient, for autograd; where the engine has a buffer, it goes there."""
    buffer = buffer_of(ctx.weight)
    if buffer is None:
        return gradient.mul_(scale)
    buffer.addcmul_(gradient, scale)
    # Autograd adds up what all uses of a weight return: it needs one stand-in.
    return None if ctx.used_again else stand_in(ctx.weight)


def _rows(weight: torch.Tensor, group: dist.ProcessGroup | None) -> int:
    """Of the whole vocabulary."""
    return len(weight) * (dist.get_world_size(group) if group else 1)


def _row_here(labels: torch.Tensor, rows: int, group: dist.ProcessGroup | None) -> torch.Tensor:
    """The row of each label among this rank's, int64 [n]; -1: another rank's."""
    row = labels - (dist.get_rank(group) if group else 0) * rows
    return torch.where((row >= 0) & (row < rows), row, -1)


def _statistics(
    logits: torch.Tensor, row: torch.Tensor, with_mean: bool, group: dist.ProcessGroup | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Over the whole vocabulary, for the n rows of `logits` [n, V / TP]: log Z, the label's logit and the mean logit
    (0 unless asked for), each [n]; and what `second_pass` takes. `logits` may change."""
    ranks = dist.get_world_size(group) if group else 1
    log_z, chosen, mean, top = first_pass(logits, row, with_mean)
    mean = mean / (logits.shape[1] * ranks)
    if ranks > 1:  # one exchange a chunk, of three numbers a place
        mine = torch.stack([log_z, chosen, mean])
        everyone = mine.new_empty((ranks * len(mine), len(log_z)))
        dist.all_gather_into_tensor(everyone, mine, group=group)
        everyone = everyone.view(ranks, *mine.shape)
        log_z, chosen, mean = everyone[:, 0].logsumexp(0), everyone[:, 1].sum(0), everyone[:, 2].sum(0)
    return log_z, chosen, mean, top


def _add_gradients(
    gradients: _Gradients, logits: torch.Tensor, states: torch.Tensor, weight: torch.Tensor, part: Any, first: bool
) -> None:
    """Carry a chunk's gradient with respect to its logits on to its hidden states and the head; `first`: the head's
    holds nothing yet."""
    if gradients.hidden is not None:
        gradients.hidden[part] = logits @ weight
    if gradients.weight is not None:
        if first:
            _product(logits.t(), states, gradients.weight)
        else:
            add_product(logits.t(), states, gradients.weight)


def _product(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """`left @ right` in `out`, which is returned: fp32 for half-precision factors, without rounding on CUDA."""
    if left.dtype == out.dtype:
        return torch.mm(left, right, out=out)
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=out.dtype, out=out)
    return out.copy_(left @ right)
