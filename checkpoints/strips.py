"""Tensors as strips of rows, wherever their bytes lie: what is fused, split or cut is looked at in another order first,
and copied once, on its way to the disk."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import prod

import numpy as np
import numpy.typing as npt
import torch

Bytes = npt.NDArray[np.uint8]

BLOCK = 1 << 20
"""Bytes that are looked at in one go: what a core's cache holds while they are hashed, checked and written."""

_SMALL = 1 << 16  # bytes; strips of less are copied together first

Run = tuple[int, int]
"""A first row, and how many."""


@dataclass(frozen=True)
class Strip:
    """Neighbouring rows of a tensor. columns: what lies side by side in each row, as bytes [rows, of each]."""

    columns: tuple[Bytes, ...]

    @property
    def rows(self) -> int:
        return len(self.columns[0])

    @property
    def flat(self) -> Bytes | None:
        """All of it, [bytes], where it lies in one run."""
        [first, *more] = self.columns
        return first.reshape(-1) if not more and first.flags.c_contiguous else None

    def down(self, low: int, high: int) -> Strip:
        """Its rows from `low` to before `high`."""
        if low == 0 and high == self.rows:
            return self
        return Strip(tuple(column[low:high] for column in self.columns))

    def across(self, low: int, high: int) -> Strip:
        """The bytes from `low` to before `high` of each row."""
        chosen = []
        begin = 0
        for column in self.columns:
            end = begin + column.shape[1]
            if low < end and begin < high:
                chosen.append(column[:, max(low - begin, 0) : min(high, end) - begin])
            begin = end
        return Strip(tuple(chosen))

    def copy_into(self, out: Bytes) -> None:
        """Into contiguous [bytes]."""
        out = out.reshape(self.rows, -1)
        begin = 0
        for column in self.columns:
            end = begin + column.shape[1]
            out[:, begin:end] = column
            begin = end


@dataclass(frozen=True)
class Strips:
    """A tensor: rows are all axes but the last one, of a vector its elements. It holds views; nothing is copied until
    `blocks` or `tensor` is asked for."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    strips: tuple[Strip, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Strips:
        """A tensor on the CPU, as it lies in memory where its rows are runs there."""
        shape = tuple(tensor.shape)
        rows, width = rows_of(shape), width_of(shape, tensor.dtype)
        if tensor.numel() == 0:
            return cls(shape, tensor.dtype, ())
        tensor = tensor.detach()
        if not tensor.is_contiguous() and (tensor.dim() != 2 or tensor.stride(1) != 1):
            tensor = tensor.contiguous()
        if tensor.is_contiguous():
            tensor = tensor.reshape(-1)
        content = tensor.view(torch.uint8).numpy()
        return cls(shape, tensor.dtype, (Strip((content.reshape(rows, width),)),))

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(strip.rows for strip in self.strips))

    def rows(self, runs: Iterable[Run]) -> Iterator[Strip]:
        """These rows, in this order."""
        for low, count in runs:
            high = low + count
            number = bisect_right(self._ends, low)
            while low < high:
                begin = self._ends[number] - self.strips[number].rows
                end = min(self._ends[number], high)
                yield self.strips[number].down(low - begin, end - begin)
                low, number = end, number + 1

    def box(self, offsets: Sequence[int], sizes: Sequence[int]) -> Strips:
        """A part of it: where it begins and its shape."""
        sizes = tuple(sizes)
        if sizes == self.shape:
            return self
        if not prod(sizes):
            return Strips(sizes, self.dtype, ())
        runs, (low, high) = cut(self.shape, self.dtype, offsets, sizes)
        found = self.rows(runs)
        if high - low != width_of(self.shape, self.dtype):
            found = (strip.across(low, high) for strip in found)
        return Strips(sizes, self.dtype, tuple(found))

    def first(self, count: int) -> Strips:
        """The first of its first axis."""
        return self.box((0,) * len(self.shape), (count, *self.shape[1:]))

    def blocks(self) -> Iterator[Bytes]:
        """All its bytes in row-major order, [bytes] of whole rows each; a block is good until the next is asked for."""
        width = width_of(self.shape, self.dtype)
        buffer: Bytes | None = None
        filled = 0
        for strip in self.strips:
            flat = strip.flat
            if flat is not None and len(flat) >= _SMALL:
                if buffer is not None and filled:
                    yield buffer[:filled]
                    filled = 0
                step = max(BLOCK // width, 1) * width
                for begin in range(0, len(flat), step):
                    yield flat[begin : begin + step]
                continue
            if buffer is None:
                buffer = np.empty(max(BLOCK, width), np.uint8)
            row = 0
            while row < strip.rows:
                count = min(strip.rows - row, (len(buffer) - filled) // width)
                if not count:
                    yield buffer[:filled]
                    filled = 0
                    continue
                end = filled + count * width
                strip.down(row, row + count).copy_into(buffer[filled:end])
                row, filled = row + count, end
        if buffer is not None and filled:
            yield buffer[:filled]

    def tensor(self) -> torch.Tensor:
        """As a tensor: a view where it lies in one run, else a copy."""
        flat = self.strips[0].flat if len(self.strips) == 1 else None
        if flat is None:
            flat = np.empty(self.nbytes, np.uint8)
            at = 0
            for strip in self.strips:
                end = at + strip.rows * width_of(self.shape, self.dtype)
                strip.copy_into(flat[at:end])
                at = end
        return torch.from_numpy(flat).view(self.dtype).view(self.shape)


def rows_of(shape: Sequence[int]) -> int:
    """How many rows a tensor of this shape is."""
    return prod(shape) if len(shape) < 2 else prod(shape[:-1])


def width_of(shape: Sequence[int], dtype: torch.dtype) -> int:
    """Bytes of a row."""
    return dtype.itemsize if len(shape) < 2 else shape[-1] * dtype.itemsize


def cut(
    shape: Sequence[int], dtype: torch.dtype, offsets: Sequence[int], sizes: Sequence[int]
) -> tuple[list[Run], tuple[int, int]]:
    """The rows of a tensor that a box has a part of, and of each row the bytes from the first to before the second."""
    if len(shape) < 2:
        return [(offsets[0], sizes[0])] if shape else [(0, 1)], (0, dtype.itemsize)
    low, high = (place * dtype.itemsize for place in (offsets[-1], offsets[-1] + sizes[-1]))
    return _runs(shape[:-1], offsets[:-1], sizes[:-1]), (low, high)


def _runs(shape: Sequence[int], offsets: Sequence[int], sizes: Sequence[int]) -> list[Run]:
    """Rows of a box, where rows are numbered through all axes of `shape`; neighbours are one run."""
    runs = [(0, 1)]
    for length, offset, size in zip(shape, offsets, sizes, strict=True):
        if size == length:
            runs = [(low * length, count * length) for low, count in runs]
        else:
            runs = [(row * length + offset, size) for low, count in runs for row in range(low, low + count)]
    return runs


def side_by_side(shape: tuple[int, ...], dtype: torch.dtype, tiles: Sequence[tuple[Sequence[int], Strips]]) -> Strips:
    """A tensor of tiles, each with its offsets, that share out one axis and have all of the others. Raises ValueError
    where they are laid otherwise."""
    if len(tiles) == 1 and tiles[0][1].shape == shape:
        return tiles[0][1]
    axes = [axis for axis in range(len(shape)) if any(tile.shape[axis] != shape[axis] for _, tile in tiles)]
    if len(axes) != 1:
        raise ValueError(f"tiles of {list(shape)} that share out {len(axes)} axes")
    [axis] = axes
    ordered = sorted(tiles, key=lambda tile: tile[0][axis])
    place = 0
    for offsets, tile in ordered:
        if offsets[axis] != place or tile.dtype != dtype:
            raise ValueError(f"tiles of {list(shape)} that leave a gap or overlap at {offsets[axis]}")
        place += tile.shape[axis]
    if place != shape[axis]:
        raise ValueError(f"tiles of {list(shape)} that end at {place}")
    if axis == len(shape) - 1 and axis > 0:
        return Strips(shape, dtype, tuple(_abreast([tile for _, tile in ordered], rows_of(shape))))
    strips: list[Strip] = []
    for number in range(prod(shape[:axis])):  # of each tile in turn, what it has of every index of the axes before
        for _, tile in ordered:
            count = rows_of(tile.shape) // prod(shape[:axis])
            strips += tile.rows([(number * count, count)])
    return Strips(shape, dtype, tuple(strips))


def _abreast(tiles: Sequence[Strips], rows: int) -> Iterator[Strip]:
    """Strips of tiles that have the same rows, side by side."""
    ends = sorted({end for tile in tiles for end in tile._ends})
    low = 0
    for high in ends:
        columns = [strip for tile in tiles for strip in tile.rows([(low, high - low)])]
        yield Strip(tuple(column for strip in columns for column in strip.columns))
        low = high
    if low != rows:
        raise ValueError(f"tiles of {low} rows for {rows}")
