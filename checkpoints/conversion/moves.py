"""What a layout does, as moves of whole rows: found by having it lay row numbers rather than weights.

Fusing and splitting only put rows in another order (`checkpoints.rules`), so bytes can go from file to file without a
fused tensor in memory. A layout that does more than that is told apart here, and then has to be computed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch

from checkpoints.rules import COPY, Layout
from checkpoints.strips import Run, Strips, rows_of
from configs.schema import BackboneConfig

Shapes = Sequence[tuple[int, ...]]
Transform = Callable[[list[torch.Tensor]], Sequence[torch.Tensor]]


@dataclass(frozen=True)
class Moves:
    """made: shapes of the tensors that rows are moved into. runs: for each of these, in order, the tensor that rows are
    taken from, and which of its rows."""

    made: Shapes
    runs: Sequence[Sequence[tuple[int, Run]]]

    def of(self, given: Sequence[Strips]) -> list[Strips]:
        """The tensors that moving rows of the `given` makes."""
        return [
            Strips(shape, given[0].dtype, tuple(strip for part, run in runs for strip in given[part].rows([run])))
            for shape, runs in zip(self.made, self.runs, strict=True)
        ]


def moves(transform: Transform, given: Shapes) -> Moves | None:
    """How rows of tensors of the shapes `given` are moved; None where `transform` does more than move whole rows, each
    once, into one place."""
    vectors = all(len(shape) == 1 for shape in given)
    if not vectors and not all(len(shape) > 1 and shape[-1] == given[0][-1] for shape in given):
        return None
    width = 1 if vectors else 2  # numbers a row; two tell whether they stay together
    ends = list(accumulate(rows_of(shape) for shape in given))
    numbered = torch.arange(ends[-1] * width)
    parts = [
        numbered[(end - rows_of(shape)) * width : end * width].view(shape if vectors else (*shape[:-1], width))
        for shape, end in zip(given, ends, strict=True)
    ]
    laid = [tensor.numpy() for tensor in transform(parts)]
    if not all(tensor.ndim == 1 if vectors else tensor.ndim > 1 and tensor.shape[-1] == width for tensor in laid):
        return None
    flat = [tensor.reshape(-1, width) for tensor in laid]
    if any((tensor != tensor[:, :1] + np.arange(width)).any() or (tensor[:, 0] % width).any() for tensor in flat):
        return None
    rows = [tensor[:, 0] // width for tensor in flat]
    if not np.array_equal(np.sort(np.concatenate(rows)), np.arange(ends[-1])):
        return None
    made = [tensor.shape if vectors else (*tensor.shape[:-1], given[0][-1]) for tensor in laid]
    return Moves(made, [_runs(numbers, ends) for numbers in rows])


def _runs(numbers: np.ndarray, ends: list[int]) -> list[tuple[int, Run]]:
    """Neighbouring rows of one tensor together."""
    if not len(numbers):
        return []
    breaks = np.flatnonzero((np.diff(numbers) != 1) | np.isin(numbers[1:], ends)) + 1
    found = []
    for begin, end in zip([0, *breaks.tolist()], [*breaks.tolist(), len(numbers)], strict=True):
        first = int(numbers[begin])
        part = bisect_right(ends, first)
        before = ends[part - 1] if part else 0
        found.append((part, (first - before, end - begin)))
    return found


class Layouts:
    """Fuses and splits by a backbone's layouts, without copying where rows are moved alone."""

    def __init__(self, backbone: BackboneConfig) -> None:
        self._backbone = backbone
        self._known: dict[tuple[Layout, bool, tuple[tuple[int, ...], ...]], Moves | None] = {}

    def fuse(self, layout: Layout, parts: Sequence[Strips]) -> Strips:
        """The native tensor of the foreign ones."""
        return self._apply(layout, parts, fuse=True)[0]

    def split(self, layout: Layout, whole: Strips) -> list[Strips]:
        """The foreign tensors of the native one."""
        return self._apply(layout, [whole], fuse=False)

    def fused(self, layout: Layout, shapes: Shapes) -> tuple[int, ...]:
        """Shape of the native tensor of foreign ones."""
        return self._shapes(layout, shapes, fuse=True)[0]

    def parted(self, layout: Layout, shape: tuple[int, ...]) -> Shapes:
        """Shapes of the foreign tensors of a native one."""
        return self._shapes(layout, [shape], fuse=False)

    def woven(self, layout: Layout, shape: tuple[int, ...]) -> Sequence[tuple[int, Run]] | None:
        """Of the rows of the native tensor of `shape`, in order, the foreign tensor that they belong to and which they
        are there; None where more is done than rows moved, or those of one tensor change places among themselves."""
        if layout == COPY:
            return [(0, (0, rows_of(shape)))]
        found = self._moves(layout, self.parted(layout, shape), fuse=True)
        if found is None:
            return None
        seen = [0] * (1 + max(part for part, _ in found.runs[0]))
        for part, (first, count) in found.runs[0]:
            if first != seen[part]:
                return None
            seen[part] += count
        return found.runs[0]

    def _apply(self, layout: Layout, given: Sequence[Strips], *, fuse: bool) -> list[Strips]:
        if layout == COPY:
            return list(given)
        found = self._moves(layout, [one.shape for one in given], fuse)
        if found is None or len({one.dtype for one in given}) > 1:
            return [Strips.of(tensor) for tensor in self._transform(layout, fuse)([one.tensor() for one in given])]
        return found.of(given)

    def _shapes(self, layout: Layout, given: Shapes, *, fuse: bool) -> Shapes:
        if layout == COPY:
            return given
        if found := self._moves(layout, given, fuse):
            return found.made
        made = self._transform(layout, fuse)([torch.empty(shape, device="meta") for shape in given])
        return [tuple(tensor.shape) for tensor in made]

    def _moves(self, layout: Layout, given: Shapes, fuse: bool) -> Moves | None:
        key = (layout, fuse, tuple(given))
        if key not in self._known:
            self._known[key] = moves(self._transform(layout, fuse), given)
        return self._known[key]

    def _transform(self, layout: Layout, fuse: bool) -> Transform:
        if fuse:
            return lambda tensors: [layout.fuse(tensors, self._backbone)]
        return lambda tensors: layout.split(tensors[0], self._backbone)
