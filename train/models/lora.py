"""Low-rank updates of the trunk's linear layers, sharded as the layers are over tensor-parallel ranks.

Hu et al. 2021 (2106.09685), eq. 3: h = W x + (alpha / rank) B A x, with W [out, in] frozen, A [rank, in] and
B [out, rank]. B starts at zero, so that the model starts as it was, and A uniform in +-1 / sqrt(in), as in the
authors' own code. Fused layers take one update as a whole: A is shared by queries, keys and values, and by gate and up.

Both factors stand in checkpoints beside the weight they update, whole on any topology:
`decoder.layers.self_attention.linear_qkv.lora_a` and `.lora_b`, layers stacked as everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.utils import make_tp_sharded_tensor_for_checkpoint

from configs.parameter_names import LORA_A, LORA_B, matching
from configs.schema import LoraConfig
from train.models.speech_lm import SpeechLM

_LAYERS = "decoder.layers"


class LoraColumnParallelLinear(ColumnParallelLinear):
    """A layer whose output is split: A whole on every rank, B's rows split as the weight's are.

    Under sequence parallelism each rank runs A on its part of the sequence, and what is gathered is `rank` wide. A's
    gradient is then a partial sum, which the `sequence_parallel` mark has Megatron add up.
    """

    lora_scale: float
    gated: bool  # two halves in one, gate and up, each split for itself

    def forward(
        self, input_: torch.Tensor, weight: torch.Tensor | None = None, runtime_gather_output: bool | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """input_: [tokens, 1, in], under sequence parallelism [tokens / TP, 1, in] -> [tokens, 1, out / TP]."""
        output, bias = super().forward(input_, weight, runtime_gather_output)
        narrow = F.linear(input_, self.lora_a)
        share = gather_from_sequence_parallel_region if self.sequence_parallel else copy_to_tensor_model_parallel_region
        update = F.linear(share(narrow, group=self.tp_group), self.lora_b)
        return output + self.lora_scale * update, bias

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        state: dict[str, Any] = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        split = _split_for_checkpoint(self, LORA_B, 0, prefix, sharded_offsets, metadata)
        if self.gated:
            one_each = (metadata or {}).get("singleton_local_shards", False)
            split = apply_swiglu_sharded_factory(split, sharded_offsets, one_each)
        state[prefix + LORA_B] = split
        return state


class LoraRowParallelLinear(RowParallelLinear):
    """A layer whose input is split: A's columns split as the weight's are, B whole on every rank.

    The ranks' parts of A x are added up before B, `rank` wide, rather than after it inside the layer's own sum: B's
    gradient then is the same on all ranks, or under sequence parallelism a partial sum as every whole parameter's.
    """

    lora_scale: float

    def forward(self, input_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """input_: [tokens, 1, in / TP] -> [tokens, 1, out], under sequence parallelism [tokens / TP, 1, out]."""
        output, bias = super().forward(input_)
        narrow = F.linear(input_, self.lora_a)
        add_up = (
            reduce_scatter_to_sequence_parallel_region
            if self.sequence_parallel
            else reduce_from_tensor_model_parallel_region
        )
        update = F.linear(add_up(narrow, group=self.tp_group), self.lora_b)
        return output + self.lora_scale * update, bias

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        state: dict[str, Any] = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        state[prefix + LORA_A] = _split_for_checkpoint(self, LORA_A, 1, prefix, sharded_offsets, metadata)
        return state


_ADAPTED: dict[type[torch.nn.Module], type[torch.nn.Module]] = {
    ColumnParallelLinear: LoraColumnParallelLinear,
    RowParallelLinear: LoraRowParallelLinear,
}


def adaptable(model: SpeechLM) -> set[str]:
    """Linear layers of this chunk that can take an update, by checkpoint name, layers together."""
    return {name for name, _ in _linears(model)}


def add_lora(model: SpeechLM, config: LoraConfig) -> None:
    """Give the linear layers of this chunk that a target matches their two factors, not yet filled.

    The layers change class in place, and so keep their names, their weights and their place in Megatron's modules.
    """
    wanted = matching(config.targets, adaptable(model))
    for name, linear in _linears(model):
        if name in wanted:
            linear.__class__ = _ADAPTED[type(linear)]
            _add_factors(linear, config)
            linear.gated = name.endswith("mlp.linear_fc1") and model.config.gated_linear_unit


def _linears(model: SpeechLM) -> Iterator[tuple[str, Any]]:
    """Expert layers left out: their tokens do not arrive as those of the others do."""
    layers: Iterable[Any] = model.decoder.layers
    for layer in layers:
        for name, module in layer.named_modules():
            if type(module) in _ADAPTED and not module.is_expert:
                yield f"{_LAYERS}.{name}", module


def _add_factors(linear: Any, config: LoraConfig) -> None:
    weight = linear.weight
    column = isinstance(linear, ColumnParallelLinear)
    for name, shape, split_axis in (
        (LORA_A, (config.rank, weight.shape[1]), None if column else 1),
        (LORA_B, (weight.shape[0], config.rank), 0 if column else None),
    ):
        factor: Any = torch.nn.Parameter(torch.zeros(shape, dtype=weight.dtype, device=weight.device))
        factor.allreduce = True
        if split_axis is None:
            factor.sequence_parallel = linear.sequence_parallel
        else:
            set_tensor_model_parallel_attributes(factor, True, split_axis, 1)
        linear.register_parameter(name, factor)
    linear.lora_scale = config.alpha / config.rank


def _split_for_checkpoint(
    linear: Any, name: str, axis: int, prefix: str, offsets: tuple[Any, ...], metadata: dict[str, Any] | None
) -> Any:
    return make_tp_sharded_tensor_for_checkpoint(
        getattr(linear, name),
        prefix + name,
        axis,
        prepend_offsets=offsets,
        tp_group=linear.tp_group,
        dp_cp_group=(metadata or {})["dp_cp_group"],
    )
