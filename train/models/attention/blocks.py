"""Which blocks of keys FlexAttention computes for which blocks of queries, of a whole packed row, straight from where
its samples begin: no pair of places is looked at, which for rows of many packs costs more than attention does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask

SIZE = 128  # places a block, as FlexAttention's kernels take them


def causal_blocks(begins: torch.Tensor, visible: Callable[..., Any]) -> BlockMask:
    """begins: int64 [N], where the sample of each place of the row begins; visible: the mask that holds inside of
    blocks seen in part.

    A block of queries sees the blocks from the one where its first query's sample begins up to itself, without a gap:
    that sample reaches over all between. It sees a block in full where all of its queries are of that sample, and the
    block lies inside of it and before them.
    """
    places = len(begins)
    blocks = -(-places // SIZE)
    number = torch.arange(blocks, device=begins.device)
    begin = begins[number * SIZE]
    alike = (begins[(number * SIZE + SIZE - 1).clamp(max=places - 1)] == begin) & ((number + 1) * SIZE <= places)
    seen = (number[None] >= (begin // SIZE)[:, None]) & (number[None] <= number[:, None])
    full = alike[:, None] & (number[None] * SIZE >= begin[:, None]) & (number[None] < number[:, None])
    return BlockMask.from_kv_blocks(
        *_in_order(seen & ~full), *_in_order(full), BLOCK_SIZE=SIZE, mask_mod=visible, seq_lengths=(places, places)
    )


def _in_order(chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How many blocks are chosen in each row, int32 [1, 1, rows], and which, first, int32 [1, 1, rows, blocks]."""
    order = torch.argsort(chosen.int(), dim=1, descending=True, stable=True)
    return chosen.sum(1, dtype=torch.int32)[None, None], order.int()[None, None]
