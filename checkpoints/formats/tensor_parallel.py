"""How the parts that tensor-parallel ranks hold of a parameter make up the whole."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import torch

from runtime.exits import BadInput


class Cut(Enum):
    """How a parameter is shared out."""

    whole = "whole"  # every rank has all of it
    rows = "rows"  # the first axis is cut
    columns = "columns"  # the second
    halves = "halves"  # it is two matrices, one above the other, and each rank has its rows of both: gate and up
    mean = "mean"  # every rank has all of it, and they differ by rounding


def merged(parts: Sequence[torch.Tensor], cut: Cut, name: str) -> torch.Tensor:
    """The whole of the parts, by rank. Raises BadInput, with `name`, where they do not fit together so."""
    if len(parts) == 1:
        return parts[0]
    try:
        if cut is Cut.whole:
            if any(not torch.equal(parts[0], other) for other in parts[1:]):
                raise BadInput(f"{name}: tensor-parallel ranks hold different values of what they should share")
            return parts[0]
        if cut is Cut.mean:
            return torch.stack(list(parts)).float().mean(0).to(parts[0].dtype)
        if cut is Cut.halves:
            halves = [part.chunk(2) for part in parts]
            return torch.cat([half[0] for half in halves] + [half[1] for half in halves])
        return torch.cat(list(parts), dim=1 if cut is Cut.columns else 0)
    except RuntimeError as error:
        raise BadInput(f"{name}: its parts of {[list(part.shape) for part in parts]} do not fit together") from error


def merged_shape(shapes: Sequence[Sequence[int]], cut: Cut, name: str) -> tuple[int, ...]:
    """The shape of the whole; nothing is read."""
    return tuple(_merge_empty(shapes, cut, name).shape)


def _merge_empty(shapes: Sequence[Sequence[int]], cut: Cut, name: str) -> torch.Tensor:
    parts = [torch.empty(tuple(shape), device="meta") for shape in shapes]
    if cut in (Cut.whole, Cut.mean):
        return parts[0]
    return merged(parts, cut, name)
