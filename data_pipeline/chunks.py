"""Which places of a packed row attend to which: the row's samples, cut where a rank's part of the row ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Chunk:
    """Neighbouring places `start` to `end` of a row, cut into pieces, one a sample that reaches into them.

    A piece's queries are the sample's places inside the chunk; its keys are the sample's places from its first to the
    last of those queries, which sees them all. So keys of neighbouring pieces are neighbours too: they are the row's
    places `first_key` to `end`. queries, keys: how many of them each piece has. cu_queries, cu_keys: int32
    [pieces + 1], where each piece's begin, counted from `start` and from `first_key`.
    """

    start: int
    end: int
    first_key: int
    queries: tuple[int, ...]
    keys: tuple[int, ...]
    cu_queries: torch.Tensor
    cu_keys: torch.Tensor

    def __len__(self) -> int:
        return self.end - self.start


def chunk_of(lengths: Sequence[int], start: int, end: int) -> Chunk:
    """The chunk of places `start` to `end` of a row of samples of these lengths."""
    ends = np.cumsum(lengths)
    begins = ends - lengths
    inside = (begins < end) & (ends > start)
    first, last = begins[inside], np.minimum(ends[inside], end)
    queries = (last - np.maximum(first, start)).tolist()
    keys = (last - first).tolist()
    return Chunk(
        start=start,
        end=end,
        first_key=int(first[0]),
        queries=tuple(queries),
        keys=tuple(keys),
        cu_queries=_bounds(queries),
        cu_keys=_bounds(keys),
    )


def _bounds(lengths: Sequence[int]) -> torch.Tensor:
    return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
