"""Tensors by name as an indented tree: shapes, dtypes, and what every module comes to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from math import prod

import torch

from checkpoints.manifest import TensorRecord


@dataclass
class _Node:
    """A module, or a tensor where `record` is set. `alike`: so many modules of the same contents shown as one."""

    children: dict[str, _Node] = field(default_factory=dict)
    record: TensorRecord | None = None
    alike: int = 1

    @property
    def elements(self) -> int:
        own = prod(self.record.shape) if self.record else 0
        return own + sum(child.elements * child.alike for child in self.children.values())

    @property
    def nbytes(self) -> int:
        own = nbytes_of(self.record) if self.record else 0
        return own + sum(child.nbytes * child.alike for child in self.children.values())


def nbytes_of(record: TensorRecord) -> int:
    """Bytes of a tensor's data."""
    dtype: torch.dtype = getattr(torch, record.dtype)
    return prod(record.shape) * dtype.itemsize


def tree(tensors: Mapping[str, TensorRecord]) -> list[str]:
    """A line for every module, with its sums over all below it, and for every tensor, with shape and dtype: elements
    and bytes of both. Layers that follow one another and hold the same are shown once, with what each comes to."""
    root = _Node()
    for name, record in tensors.items():
        node = root
        for part in name.split("."):
            node = node.children.setdefault(part, _Node())
        node.record = record
    rows = list(_rows(_gathered(root), 0))
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(5)]
    sides = "<<<>>"
    return [
        "  ".join(f"{word:{side}{width}}" for word, side, width in zip(row, sides, widths, strict=True)) for row in rows
    ]


def _gathered(node: _Node) -> _Node:
    """The same tree, with runs of numbered children of the same contents as one child each."""
    children = {name: _gathered(child) for name, child in node.children.items()}
    found: dict[str, _Node] = {}
    numbered = sorted((int(name), child) for name, child in children.items() if name.isdecimal())
    for name, child in children.items():
        if not name.isdecimal():
            found[name] = child
    for _, run in groupby(enumerate(numbered), key=lambda item: (item[1][0] - item[0], _contents(item[1][1]))):
        members = [numbered_child for _, numbered_child in run]
        first, last = members[0][0], members[-1][0]
        child = members[0][1]
        label = str(first) if first == last else f"{first}-{last}"
        found[label] = _Node(child.children, child.record, len(members))
    return _Node(found, node.record)


def _contents(node: _Node) -> tuple[object, ...]:
    return (node.record, node.alike, *((name, _contents(child)) for name, child in sorted(node.children.items())))


def _rows(node: _Node, depth: int) -> Iterator[tuple[str, str, str, str, str]]:
    for name, child in node.children.items():
        shape, dtype = (str(list(child.record.shape)), child.record.dtype) if child.record else ("", "")
        note = f" (each of {child.alike})" if child.alike > 1 else ""
        yield f"{'  ' * depth}{name}{note}", shape, dtype, f"{child.elements:,}", f"{child.nbytes:,}"
        yield from _rows(child, depth + 1)
