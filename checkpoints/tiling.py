"""Whether boxes fill a larger one, each place once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from math import prod

_MOST_AXES = 8


def tiles(shape: Sequence[int], boxes: Iterable[tuple[Sequence[int], Sequence[int]]]) -> bool:
    """Whether boxes, given as offsets and sizes, cover all of `shape` without overlap.

    Boxes whose corners cancel in pairs, but for those of the whole, cover every place an odd number of times; with the
    volume of the whole that is once. The cost is 2^axes a box.
    """
    if len(shape) > _MOST_AXES:
        return False
    corners: set[tuple[int, ...]] = set()
    volume = 0
    for offsets, sizes in boxes:
        if not len(offsets) == len(sizes) == len(shape):
            return False
        ends = [offset + size for offset, size in zip(offsets, sizes, strict=True)]
        if min(offsets, default=0) < 0 or any(end > most for end, most in zip(ends, shape, strict=True)):
            return False
        if min(sizes, default=1) <= 0:
            if min(sizes) < 0:
                return False
            continue
        volume += prod(sizes)
        corners ^= set(product(*zip(offsets, ends, strict=True)))
    whole = set(product(*((0, length) for length in shape))) if prod(shape) else set()
    return volume == prod(shape) and corners == whole
