"""What one rank writes of a sharded state: pieces of tensors, each with its place in the whole."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, WriteItem

from checkpoints.agreement import gather, highest, on_first_rank


@dataclass(frozen=True)
class Piece:
    """A part of one tensor, contiguous and detached, or the bytes of an object that is already serialised."""

    item: WriteItem
    data: torch.Tensor | io.BytesIO

    @property
    def size(self) -> int:
        """Bytes of data."""
        if isinstance(self.data, torch.Tensor):
            return self.data.numel() * self.data.element_size()
        return self.data.getbuffer().nbytes


def pieces_of(sharded_state: dict[str, Any]) -> tuple[list[Piece], dict[str, Any]]:
    """The pieces that this rank writes of a sharded state dict, and what in it is not sharded.

    Of replicas one rank writes the main one. Nothing is copied but tensors that are not contiguous; no other rank is
    asked. The state dict is changed on the way and of no further use.
    """
    from megatron.core.dist_checkpointing.dict_utils import dict_list_map_inplace
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
    from megatron.core.dist_checkpointing.strategies.torch import (
        MCoreSavePlanner,
        _replace_state_dict_keys_with_sharded_keys,
        mcore_to_pyt_state_dict,
    )
    from megatron.core.dist_checkpointing.utils import extract_nonpersistent, extract_sharded_base

    def contiguous(value: Any) -> Any:
        if isinstance(value, ShardedTensor) and value.data is not None:
            value.data = value.data.detach().contiguous()
        return value

    apply_factories(sharded_state)
    _, lasting = extract_nonpersistent(sharded_state)
    sharded, common = extract_sharded_base(lasting)
    dict_list_map_inplace(contiguous, sharded)
    flat, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded, True)
    planner = MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False)
    planner.set_up_planner(mcore_to_pyt_state_dict(flat, False), is_coordinator=dist.get_rank() == 0)
    return [Piece(item, planner.resolve_data(item)) for item in planner.create_local_plan().items], common


class Plan:
    """The index of a checkpoint, made once by all ranks and kept for as long as their pieces stay the same."""

    def __init__(self) -> None:
        self._items: list[WriteItem] | None = None
        self._index: Metadata | None = None

    def agree(self, pieces: Sequence[Piece], doing: str) -> Metadata | None:
        """The index, without places in files, on rank 0; None on the others. Every rank calls this.

        Raises ValueError on rank 0 and RuntimeError on the others, beginning with `doing`, where pieces overlap or
        leave a gap.
        """
        items = [piece.item for piece in pieces]
        if highest(int(items != self._items))[0]:
            plans = gather(SavePlan(items))
            on_first_rank(lambda: self._make(plans), doing)
            self._items = items
        return self._index

    def _make(self, plans: list[SavePlan]) -> None:
        from megatron.core.dist_checkpointing.strategies.torch import MCoreSavePlanner

        planner = MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False)
        _, self._index = planner.create_global_plan(plans)
