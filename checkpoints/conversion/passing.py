"""Tensors that are read once: all that has to see their bytes does so while a core's cache holds them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

import torch
import xxhash

from checkpoints.finite import count_nonfinite
from checkpoints.strips import Bytes, Run, Strips, width_of

Sink = Callable[[int, Bytes], None]
"""Takes the next rows of a tensor: the number of the first, and their bytes [rows, of each], good until it returns."""


def pour(tensor: Strips, sinks: Sequence[Sink]) -> None:
    """Hand a tensor to all `sinks`, some rows at a time."""
    width = width_of(tensor.shape, tensor.dtype)
    first = 0
    for block in tensor.blocks():
        rows = block.reshape(-1, width)
        for sink in sinks:
            sink(first, rows)
        first += len(rows)


class Look:
    """What is to be known of a tensor: its hash, and, of the `finite` dtype, how many values are no numbers."""

    def __init__(self, finite: torch.dtype | None = None) -> None:
        self.nonfinite = 0
        self._digest = xxhash.xxh3_64()
        self._finite = finite

    def __call__(self, first: int, rows: Bytes) -> None:
        self._digest.update(rows.data)
        if self._finite is not None:
            self.nonfinite += count_nonfinite(rows.reshape(-1), self._finite)

    @property
    def xxh3(self) -> str:
        return self._digest.hexdigest()


class Apart:
    """Hands the rows of a native tensor to the sinks of the foreign tensors that they belong to."""

    def __init__(self, runs: Sequence[tuple[int, Run]], sinks: Mapping[int, Sequence[Sink]]) -> None:
        """runs: of the native rows in order, the tensor and its rows; see `Layouts.woven`."""
        self._runs = runs
        self._sinks = sinks
        self._ends = list(accumulate(count for _, (_, count) in runs))

    def __call__(self, first: int, rows: Bytes) -> None:
        low, number = 0, bisect_right(self._ends, first)
        while low < len(rows):
            part, (begin, count) = self._runs[number]
            left = self._ends[number] - first - low  # of this run
            high = min(len(rows), low + left)
            for sink in self._sinks[part]:
                sink(begin + count - left, rows[low:high])
            low, number = high, number + 1
