"""Attention of a packed row as its formula says, in float64, and rows to try it on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from data_pipeline.batch import Batch
from data_pipeline.chunks import chunk_of


def reference(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: Sequence[int], slopes: Sequence[float] = ()
) -> torch.Tensor:
    """softmax(q k / sqrt(size) - slope sqrt(distance)) v over each token's own sample up to itself.

    query: float64 [N, heads, size]; key, value: [N, kv_heads, size]. No slopes: no such bias. Returns float64
    [N, heads, size]. One table of all pairs of places.
    """
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    scores = torch.einsum("ihd,jhd->hij", query, key) / query.shape[2] ** 0.5
    place = torch.arange(len(query))
    distance = place[:, None] - place[None]
    if slopes:
        scores = scores - torch.tensor(slopes, dtype=torch.float64)[:, None, None] * distance.clamp(min=0) ** 0.5
    sample = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    hidden = (distance < 0) | (sample[:, None] != sample[None])
    return torch.einsum("hij,jhd->ihd", scores.masked_fill(hidden, float("-inf")).softmax(-1), value)


def batch_of(lengths: Sequence[int]) -> Batch:
    """A row of samples of these lengths whose tokens are 0, 1, 2 and so on."""
    row = torch.arange(sum(lengths))[None]
    ends = torch.tensor(lengths).cumsum(0)
    return Batch(
        tokens=row,
        labels=row + 1,
        positions=torch.cat([torch.arange(length) for length in lengths])[None],
        loss_weight=1.0 / (1 + row),
        label_modality=(row % 3).to(torch.uint8),
        cu_seqlens=torch.cat([torch.zeros(1), ends]).int(),
        longest=max(lengths),
        chunks=(chunk_of(lengths, 0, sum(lengths)),),
    )


def inputs(places: int, heads: int, kv_heads: int, size: int, seed: int) -> list[torch.Tensor]:
    """Query, key, value, and a direction to differentiate along, float64."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(places, count, size, generator=generator, dtype=torch.float64)
        for count in (heads, kv_heads, kv_heads, heads)
    ]
