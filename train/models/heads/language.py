"""The language-model head: next tokens over the whole vocabulary, text and audio codes alike."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)

from train.models.heads.distillation_loss import distillation_loss
from train.models.heads.likeliest import Asked, Likeliest, likeliest
from train.models.heads.terms import HeadLosses, Targets
from train.models.heads.vocabulary_loss import place_losses, vocabulary_loss

LANGUAGE = "lm"  # the head's name among losses


class LanguageHead(ColumnParallelLinear):
    """Megatron-Core's output layer, which can answer with losses, or the likeliest tokens, instead of logits.

    The weight is used inside a module's forward pass only: hooks before it wait for parameters that are still being
    gathered over the data-parallel ranks.
    """

    looked_up = False  # the weight is also this model's embedding, in whose backward pass its gradient is complete

    def forward(
        self,
        input_: torch.Tensor,
        weight: torch.Tensor | None = None,
        runtime_gather_output: bool | None = None,
        targets: Targets | Asked | None = None,
    ) -> Any:
        """Logits as the base class returns them; with targets, `language_losses` or `likeliest_tokens` of them."""
        if self.config.logits_divisor != 1.0:
            input_ = input_ / self.config.logits_divisor
        if targets is None:
            return super().forward(input_, weight, runtime_gather_output)
        weight = self.weight if weight is None else weight
        if isinstance(targets, Asked):
            return likeliest_tokens(input_, weight, targets, self.tp_group, self.sequence_parallel)
        return language_losses(input_, weight, targets, self.tp_group, self.sequence_parallel, self.looked_up)


def language_losses(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: Targets,
    group: dist.ProcessGroup,
    sequence_parallel: bool,
    used_again: bool = False,
) -> HeadLosses:
    """Losses of the trunk's last hidden states, [N, 1, h], or this rank's [N / TP, 1, h] under sequence parallelism.

    weight: this tensor-parallel rank's rows of the head [V / TP, h]. Reported by place: "cross_entropy", plain, in
    nats, and "z", (log Z)^2, with `targets.apart` the former alone; "kl" too where there is a teacher. used_again: as
    in `vocabulary_loss`. Gradients reach `hidden` added up over the tensor-parallel ranks, as a ColumnParallelLinear's
    do.
    """
    if sequence_parallel:
        hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=True, group=group)
    else:
        hidden = copy_to_tensor_model_parallel_region(hidden, group=group)
    ranks = group if dist.get_world_size(group) > 1 else None
    if targets.apart:
        losses = place_losses(hidden[:, 0], weight, targets, ranks, used_again=used_again)
        return {"total": losses.new_zeros(()), "places": {"cross_entropy": losses[None]}}
    total, cross_entropy, z = vocabulary_loss(hidden[:, 0], weight, targets, ranks, used_again=used_again)
    places = {"cross_entropy": cross_entropy[None], "z": z[None]}
    if targets.taught is not None:
        divergence, each = distillation_loss(hidden[:, 0], weight, targets.taught, ranks)
        total, places = total + divergence, {**places, "kl": each[None]}
    return {"total": total, "places": places}


def likeliest_tokens(
    hidden: torch.Tensor, weight: torch.Tensor, asked: Asked, group: dist.ProcessGroup, sequence_parallel: bool
) -> tuple[Likeliest, ...]:
    """`likeliest` of the trunk's last hidden states; arguments as in `language_losses`."""
    if sequence_parallel:
        hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False, group=group)
    return likeliest(hidden[:, 0], weight, asked, group if dist.get_world_size(group) > 1 else None)
