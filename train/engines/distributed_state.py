"""The distributed optimiser's state, saved by each rank as it holds it: boxes of the tensors it is a part of.

Megatron-Core 0.16.1 makes a fully reshardable checkpoint by gathering every rank's share on every data-parallel rank
at each save: memory for the whole optimiser state on each of them, and most of the time that a save takes. But a
share is a range of a flattened tensor, and such a range is a few boxes (for a matrix: the rest of a row, whole rows,
the beginning of a row), which `torch_dist` stores as well as any other parts. The tensors have the same names and
shapes either way, so Megatron's own loading reads them, on any topology.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.utils import extract_sharded_tensors_and_factories
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

FULLY_RESHARDABLE = "fully_reshardable"
Shape = tuple[int, ...]


def save_without_gathering() -> None:
    """Have every distributed optimiser hand out boxes where a fully reshardable state is to be saved.

    Also without the garbage collection that Megatron-Core ends with to be rid of what it gathered: most of a second
    in a process of many objects.
    """
    if getattr(DistributedOptimizer, "_megaphone_saves_boxes", False):
        return
    gathered = DistributedOptimizer.sharded_state_dict

    def sharded_state(
        self: Any,
        model_state: dict[str, Any],
        is_loading: bool = False,
        sharding_type: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        if is_loading or (metadata or {}).get("distrib_optim_sharding_type") != FULLY_RESHARDABLE:
            return gathered(self, model_state, is_loading, sharding_type, metadata)
        boxed = list(_boxes_of(self, model_state))
        return {**self.state_dict(), "param_state": boxed, "param_state_sharding_type": FULLY_RESHARDABLE}

    DistributedOptimizer.sharded_state_dict = sharded_state
    DistributedOptimizer._megaphone_saves_boxes = True


def boxes(shape: Shape, start: int, end: int) -> Iterator[tuple[Shape, Shape]]:
    """Offsets and shape of the boxes that elements [start, end) of a flattened tensor fill, in order."""
    if start >= end:
        return
    if len(shape) <= 1:
        yield (start,) * len(shape), (end - start,) * len(shape)
        return
    row = prod(shape[1:])
    first, last = -(-start // row), end // row  # whole rows: [first, last)
    if first > last:  # inside one row
        yield from _in_row(shape, last, start, end)
        return
    if start < first * row:
        yield from _in_row(shape, first - 1, start, first * row)
    if first < last:
        yield (first, *(0 for _ in shape[1:])), (last - first, *shape[1:])
    if last * row < end:
        yield from _in_row(shape, last, last * row, end)


def _in_row(shape: Shape, index: int, start: int, end: int) -> Iterator[tuple[Shape, Shape]]:
    begin = index * prod(shape[1:])
    for offsets, sizes in boxes(shape[1:], start - begin, end - begin):
        yield (index, *offsets), (1, *sizes)


def _boxes_of(optimizer: Any, model_state: dict[str, Any]) -> Iterator[ShardedTensor]:
    """Every state tensor of every parameter that this rank has a share of."""
    known, _ = extract_sharded_tensors_and_factories(model_state)
    described = {value.data: value for value in nested_values(known)}
    for buffer in optimizer.gbuf_ranges:
        for buckets in buffer.values():
            for bucket in buckets:
                for parameter, ranges in bucket["param_map"].items():
                    share = ranges["param"]
                    known = described[parameter]
                    owner = _owner(known, optimizer.distributed_optimizer_instance_id)
                    parts = parts_of(known, parameter.shape, owner)
                    for name, tensor in optimizer._get_main_param_and_optimizer_states(parameter).items():
                        if name != "step":  # kept with the parameter groups
                            yield from cut(f"optimizer.state.{name}.", parts, tensor.detach(), share.start, share.end)


def parts_of(
    described: ShardedTensor | ShardedTensorFactory, shape: Sequence[int], replica: tuple[int, ...]
) -> list[tuple[int, ShardedTensor]]:
    """Parts of a parameter of that shape as the checkpoint names them, without data, each with where it starts in the
    flattened parameter; `replica` is whose data will be in them."""
    meta = torch.empty(tuple(shape), dtype=described.data.dtype, device="meta")
    described = replace(described, data=meta, replica_id=replica)
    built = described.build() if isinstance(described, ShardedTensorFactory) else described
    parts = list(nested_values({"parts": built}))
    for part in parts:
        assert part.data.is_contiguous(), f"{part.key}: its parts are no ranges of the parameter"
    return [(part.data.storage_offset(), part) for part in parts]


def _owner(described: ShardedTensor | ShardedTensorFactory, instance: int) -> tuple[int, ...]:
    """Data-parallel ranks share a tensor here, so that none of them holds a mere replica."""
    assert isinstance(described.replica_id, tuple) and len(described.replica_id) == 3, described
    return (*described.replica_id[:2], instance)


def cut(
    prefix: str, parts: list[tuple[int, ShardedTensor]], values: torch.Tensor, start: int, end: int
) -> Iterator[ShardedTensor]:
    """Boxes of elements [start, end) of a flattened parameter, views of their flat `values`; `prefix` goes before the
    parameter's name."""
    for begin, part in parts:
        size = prod(part.local_shape)
        low, high = max(start, begin), min(end, begin + size)
        place = low
        for offsets, shape in boxes(tuple(part.local_shape), low - begin, high - begin):
            data = values[place - start : place - start + prod(shape)]
            place += prod(shape)
            leading = len(part.global_offset) - len(offsets)
            inner = (0,) * leading + offsets
            whole = (1,) * leading + shape
            yield ShardedTensor(
                key=f"{prefix}{part.key}",
                data=data.view(whole),
                dtype=data.dtype,
                local_shape=whole,
                global_shape=part.global_shape,
                global_offset=tuple(at + by for at, by in zip(part.global_offset, inner, strict=True)),
                axis_fragmentations=None,
                replica_id=part.replica_id,
            )
