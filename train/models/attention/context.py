"""Rows that context-parallel ranks hold in parts: put together, with gradients back to whoever has the part."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist

from data_pipeline.context import shares_of_row, whole_row


class _GatherRow(torch.autograd.Function):
    """Forward: an all-gather. Backward: every rank used the whole row, so gradients are summed, and each rank gets
    those of its own part: a reduce-scatter."""

    @staticmethod
    def forward(context: Any, part: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        context.group = group
        gathered = part.new_empty((group.size(), *part.shape))
        dist.all_gather_single(gathered.view(-1), part.contiguous().view(-1), group=group)
        return whole_row(gathered)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        shares = shares_of_row(gradients[0], context.group.size()).contiguous()
        mine = torch.empty_like(shares[0])
        dist.reduce_scatter_single(mine.view(-1), shares.view(-1), group=context.group)
        return mine, None


def gather_row(part: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """part: [n, ...], what this rank has (`data_pipeline.context.spans`). Returns the whole row [ranks x n, ...]."""
    if group.size() == 1:
        return part
    return cast(torch.Tensor, _GatherRow.apply(part, group))


def gather_keys(key: torch.Tensor, value: torch.Tensor, group: dist.ProcessGroup) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of the whole row from this rank's [n, kv_heads, size], in one exchange."""
    key, value = gather_row(torch.stack([key, value], dim=1), group).unbind(1)
    return key, value
