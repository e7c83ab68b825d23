"""A DeepSpeed engine's parameters and Adam state in native checkpoints, under Megatron-Core's tensor names.

ZeRO cuts tensors anywhere and keeps the pieces on the data-parallel ranks; a checkpoint names whole (tensor-parallel
shards of) tensors, so that any engine on any topology can read it. To save, every rank hands out the pieces that it
holds, as boxes of those tensors (`distributed_state`): nothing is gathered or copied. What every rank holds whole has
one of them for an owner, dealt so that all own about the same number of bytes. To load, owners read whole tensors and
hand them round, one at a time: a rank then holds in host memory 1/DP of its model-parallel shard of everything, with
100B parameters in bf16 (2 + 4 + 4 + 4) bytes x 100B / 512 = 2.7 GB on each of 512 ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

from checkpoints.manifest import MODEL_PREFIX
from train.engines import deepspeed_library
from train.engines.distributed_state import cut, parts_of
from train.engines.optimizer_state import MASTER, step_of
from train.models.replicated import Replicated
from train.models.speech_lm import SpeechLM

MOMENTS = ("exp_avg", "exp_avg_sq")
Template: TypeAlias = ShardedTensor | ShardedTensorFactory


@dataclass(frozen=True)
class Held:
    """A parameter as checkpoints know it. shape: of this tensor-parallel rank's shard, whole over the ranks of ZeRO;
    template, learned: of the parameter and of its optimiser state; owner: a data-parallel rank."""

    name: str
    template: Template
    learned: Template
    parameter: torch.nn.Parameter
    shape: torch.Size
    dtype: torch.dtype
    owner: int


def inventory(model: SpeechLM | Replicated, data_size: int, *, by_layer: bool) -> list[Held]:
    """All parameters of a model that ZeRO has not cut up yet, in one order on all data-parallel ranks.

    `by_layer`: optimiser state goes by names with the layer's number, since not all layers have some.
    """
    tensors, learned = _templates(model), _templates(model, non_homogeneous_layers=True) if by_layer else None
    load = [0] * data_size
    owners = {}
    for name, part in sorted(tensors.items(), key=lambda item: (-item[1].data.numel(), item[0])):
        owners[name] = load.index(min(load))
        load[owners[name]] += part.data.numel()
    return [
        Held(name, part, (learned or tensors)[name], part.data, part.data.shape, part.data.dtype, owners[name])
        for name, part in tensors.items()
    ]


def _templates(model: SpeechLM | Replicated, **metadata: bool) -> dict[str, Template]:
    sharded = model.sharded_state_dict(metadata={"distrib_optim_sharding_type": "fully_reshardable", **metadata})
    return {name: part for name, part in sharded.items() if isinstance(part, ShardedTensor | ShardedTensorFactory)}


class ZeroState:
    """Reads and writes what ZeRO has cut up; all data-parallel ranks call each method together.

    engine: DeepSpeed's; stage: of ZeRO; masters: whether there are fp32 parameters beside the model's own.
    """

    def __init__(self, engine: Any, stage: int, held: list[Held], *, masters: bool) -> None:
        self._engine = engine
        self._stage = stage
        self._held = held
        self._kinds = (*MOMENTS, MASTER) if masters else MOMENTS
        self._rank = parallel_state.get_data_parallel_rank()
        self._group = parallel_state.get_data_parallel_group()
        self._prime()

    # --- checkpoints ----------------------------------------------------------------------------------------

    def sharded(self, *, optimizer: bool, loading: bool) -> dict[str, Any]:
        """Sharded tensors of what this rank writes, the live ones, or, `loading`, room for what it is to read."""
        tensors = self._room if loading else self._live
        state: dict[str, Any] = {"model": tensors(None)}
        if optimizer:
            state["optimizer"] = {"step": self._step(), "tensors": {kind: tensors(kind) for kind in self._kinds}}
        return state

    def _room(self, kind: str | None) -> dict[str, Any]:
        """By name, new host tensors for the weights that this rank owns (None), or for their optimiser state."""
        found = {}
        for held in self._held if kind is None else self._trained():
            if held.owner == self._rank:
                value = torch.empty(held.shape, dtype=torch.float32 if kind else held.dtype)
                found[held.name] = _sharded(held.learned if kind else held.template, value, _prefix(kind))
        return found

    def _live(self, kind: str | None) -> dict[str, Any]:
        """What this rank writes of the weights (None) or of optimiser state: whole tensors, or boxes."""
        found: dict[str, Any] = {}
        for held in self._held if kind is None else self._trained():
            template = held.learned if kind else held.template
            if self._stage == 3 or (kind and self._stage):
                shard, start, replica = self._shard(held, kind)
                parts = parts_of(template, held.shape, (*template.replica_id[:-1], replica))
                boxes = cut(_prefix(kind), parts, shard, start, start + len(shard))
                found |= {f"{held.name}/{number}": box for number, box in enumerate(boxes)}
            elif held.owner == self._rank:
                whole = self._engine.optimizer.state[held.parameter][kind] if kind else held.parameter.data
                found[held.name] = _sharded(template, whole, _prefix(kind))
        return found

    def _shard(self, held: Held, kind: str | None) -> tuple[torch.Tensor, int, int]:
        """What this rank holds of a tensor that is cut up: flat, where that starts in the flattened whole, and which
        replica it is (0: the first; there are others only where ZeRO-3 was told to cut up over fewer ranks than all).
        """
        parameter: Any = held.parameter
        name = None if kind == MASTER else kind
        if self._stage < 3:
            fragment = parameter._hp_mapping
            if fragment is None:
                return torch.empty(0), 0, 0
            return fragment.get_hp_fragment(name).detach(), fragment.lp_fragment_address.start, 0
        if kind is None:
            flat = parameter.ds_tensor.detach()
        else:
            # The public way to it would bring what is offloaded to the device.
            flat, _ = self._engine.optimizer._get_fp32_opt_state_partition(
                parameter, release_swap_buffers=True, optim_state_key=name
            )
        start = min(parameter.ds_zero_partition_rank * flat.numel(), parameter.ds_numel)  # the last parts are padded
        shard = flat.detach().view(-1)[: parameter.ds_numel - start]
        return shard, start, self._rank // parameter.ds_zero_partition_world_size

    def load(self, state: dict[str, Any], *, optimizer: bool) -> None:
        """Take what was read into a `sharded(loading=True)`. Raises BadInput where it has an older form."""
        for held in self._held:
            self._set_weight(held, state["model"].get(held.name))
        if not optimizer:
            self.follow_weights()
            return
        step = step_of(state["optimizer"])
        if MASTER not in self._kinds:
            self.follow_weights()
        for kind in self._kinds:
            for held in self._trained():
                self._set_optimizer_tensor(
                    held, kind, state["optimizer"].get("tensors", {}).get(kind, {}).get(held.name)
                )
        for inner in self._inner_state():
            inner["step"].fill_(step)

    @torch.no_grad()
    def follow_weights(self) -> None:
        """Set the fp32 parameters that the optimiser steps to the model's own, after those were changed by hand."""
        if self._stage:
            for held in self._trained():
                self._set_whole(held, MASTER, self._weight(held).float())

    # --- one tensor -----------------------------------------------------------------------------------------

    def _weight(self, held: Held) -> torch.Tensor:
        if self._stage < 3:
            return held.parameter.data
        with gathered([held.parameter]):
            return held.parameter.data.clone()

    @torch.no_grad()
    def _set_weight(self, held: Held, value: torch.Tensor | None) -> None:
        if self._stage < 3:
            if value is not None:
                held.parameter.data.copy_(value)
            self._broadcast(held, held.parameter.data)
            return
        with gathered([held.parameter], changed_by=held.owner):
            if value is not None:
                held.parameter.data.copy_(value)

    def _set_optimizer_tensor(self, held: Held, kind: str, value: torch.Tensor | None) -> None:
        whole = torch.empty(held.shape, dtype=torch.float32, device=held.parameter.device)
        if value is not None:
            whole.copy_(value)
        self._broadcast(held, whole)
        self._set_whole(held, kind, whole)

    def _set_whole(self, held: Held, kind: str, whole: torch.Tensor) -> None:
        if not self._stage:
            self._engine.optimizer.state[held.parameter][kind].copy_(whole)
            return
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        if kind == MASTER:
            safe_set_full_fp32_param(held.parameter, whole)
        else:
            safe_set_full_optimizer_state(held.parameter, whole, kind)

    def _broadcast(self, held: Held, tensor: torch.Tensor) -> None:
        dist.broadcast(tensor, src=dist.get_global_rank(self._group, held.owner), group=self._group)

    # --- the optimiser inside -------------------------------------------------------------------------------

    def _trained(self) -> Iterator[Held]:
        return (held for held in self._held if held.parameter.requires_grad)

    @property
    def torch_optimizer(self) -> torch.optim.Optimizer:
        """The one that updates what this rank holds of parameters."""
        return self._engine.optimizer.optimizer if self._stage else self._engine.optimizer

    def _inner_state(self) -> list[dict[str, torch.Tensor]]:
        return list(self.torch_optimizer.state.values())

    def _step(self) -> int:
        return next((int(inner["step"]) for inner in self._inner_state()), 0)

    def _prime(self) -> None:
        """Give torch's Adam the state that it makes only in its first step: saving and loading before then need it.

        With several parameter groups it must be there before DeepSpeed 0.19.8's ZeRO-1 and 2 first step: they map
        parameters to optimiser state once, after the first group's step, when the others have none yet.
        """
        wrapper, inner = self._engine.optimizer, self.torch_optimizer
        partitions = (
            getattr(wrapper, "fp32_partitioned_groups_flat", None)  # ZeRO-3
            or getattr(wrapper, "single_partition_of_fp32_groups", None)  # ZeRO-1 and 2
            or getattr(wrapper, "fp32_groups_flat_partition", None)  # ZeRO-1 in bf16
            or [parameter for group in inner.param_groups for parameter in group["params"]]
        )
        for part in partitions:
            step = torch.zeros((), dtype=torch.float32, device=part.device if inner.defaults["fused"] else "cpu")
            inner.state[part] = {"step": step, **{kind: torch.zeros_like(part.data) for kind in MOMENTS}}
        if self._stage in (1, 2):
            wrapper._lazy_init_hp_params_optimizer_state()


def gathered(parameters: list[torch.nn.Parameter], changed_by: int | None = None) -> Any:
    """Context in which parameters that ZeRO-3 has cut up are whole; afterwards those of data-parallel rank
    `changed_by` are everybody's, and without one no change is kept. Does nothing to parameters that are whole."""
    return deepspeed_library.load().zero.GatheredParameters(parameters, modifier_rank=changed_by)


def _prefix(kind: str | None) -> str:
    """Before a parameter's name in checkpoints."""
    return f"optimizer.state.{kind}.{MODEL_PREFIX}" if kind else MODEL_PREFIX


def _sharded(template: Any, value: torch.Tensor, prefix: str) -> Any:
    """`template` with other data, under `prefix`, as the only replica among the data-parallel ranks."""
    changes: dict[str, Any] = {
        "key": prefix + template.key,
        "data": value,
        "replica_id": (*template.replica_id[:-1], 0),
    }
    if isinstance(template, ShardedTensor):
        changes["dtype"] = value.dtype
    return replace(template, **changes)
