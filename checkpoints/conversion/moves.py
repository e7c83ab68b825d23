"""What a layout does, as moves of whole rows: found by having it lay row numbers rather than weights.

Fusing and splitting only put rows in another order (`checkpoints.rules`), so bytes can go from file to file without a
fused tensor in memory. A layout that does more than that is told apart here, and then has to be computed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np
import torch

from checkpoints.rules import COPY, Layout
from checkpoints.strips import Run, Strip, Strips, rows_of
from configs.schema import BackboneConfig

Moves = list[list[tuple[int, Run]]]
"""For each tensor that is made, in order: the tensor that rows are taken from, and which of its rows."""

Shapes = Sequence[tuple[int, ...]]
Transform = Callable[[list[torch.Tensor]], Sequence[torch.Tensor]]


def moves(transform: Transform, given: Shapes, made: Shapes) -> Moves | None:
    """How rows of tensors of the shapes `given` make those of the shapes `made`; None where `transform` does more than
    move whole rows, each once."""
    axes = {min(len(shape), 2) for shape in (*given, *made)}
    if len(axes) != 1 or 0 in axes or len({shape[-1] for shape in (*given, *made)} if 2 in axes else {0}) != 1:
        return None
    width = 1 if axes == {1} else 2  # numbers a row; two tell whether they stay together
    ends = list(accumulate(rows_of(shape) for shape in given))
    numbered = torch.arange(ends[-1] * width)
    parts = []
    for shape, end in zip(given, ends, strict=True):
        own = numbered[(end - rows_of(shape)) * width : end * width]
        parts.append(own.view(shape if width == 1 else (*shape[:-1], width)))
    laid = [tensor.numpy() for tensor in transform(parts)]
    if [tensor.shape for tensor in laid] != [shape if width == 1 else (*shape[:-1], width) for shape in made]:
        return None
    flat = [tensor.reshape(-1, width) for tensor in laid]
    if any((tensor != tensor[:, :1] + np.arange(width)).any() or (tensor[:, 0] % width).any() for tensor in flat):
        return None
    rows = [tensor[:, 0] // width for tensor in flat]
    if not np.array_equal(np.sort(np.concatenate(rows)), np.arange(ends[-1])):
        return None
    return [_runs(numbers, ends) for numbers in rows]


def moved(found: Moves, parts: Sequence[Strips], made: Shapes) -> list[Strips]:
    """The tensors that moving rows of `parts` makes."""
    return [Strips(shape, parts[0].dtype, tuple(_strips(runs, parts))) for runs, shape in zip(found, made, strict=True)]


def _strips(runs: list[tuple[int, Run]], parts: Sequence[Strips]) -> list[Strip]:
    return [strip for part, run in runs for strip in parts[part].rows([run])]


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
        self._known: dict[tuple[Layout, bool, tuple[tuple[int, ...], ...]], tuple[Moves | None, Shapes]] = {}

    def fuse(self, layout: Layout, parts: Sequence[Strips]) -> Strips:
        """The native tensor of the foreign ones."""
        return self._apply(layout, parts, lambda tensors: [layout.fuse(tensors, self._backbone)], fuse=True)[0]

    def split(self, layout: Layout, whole: Strips) -> list[Strips]:
        """The foreign tensors of the native one."""
        return self._apply(layout, [whole], lambda tensors: layout.split(tensors[0], self._backbone), fuse=False)

    def _apply(self, layout: Layout, given: Sequence[Strips], transform: Transform, *, fuse: bool) -> list[Strips]:
        if layout == COPY:
            return list(given)
        shapes = tuple(one.shape for one in given)
        key = (layout, fuse, shapes)
        if key not in self._known:
            shapes_made = [
                tuple(one.shape) for one in transform([torch.empty(shape, device="meta") for shape in shapes])
            ]
            self._known[key] = moves(transform, shapes, shapes_made), shapes_made
        found, made = self._known[key]
        if found is None or len({one.dtype for one in given}) > 1:
            return [Strips.of(tensor) for tensor in transform([one.tensor() for one in given])]
        return moved(found, given, made)
