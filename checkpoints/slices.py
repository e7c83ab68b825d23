"""Checkpoints tensor by tensor, and layer by layer where layers are stacked: the unit in which tools read and write.

Megatron-Core stacks parameters of equal layers under one name with the layer as first axis, optimiser state likewise.
A slice is one layer of such a tensor, or the whole of any other, so that memory never holds more than one layer's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch

from checkpoints.manifest import TensorRecord

_STACK = ".layers."


class TensorReader(Protocol):
    """What gives tensors by name, on the CPU, one at a time; `tensors` says which there are."""

    tensors: dict[str, TensorRecord]

    def read(self, name: str, layer: int | None = None) -> torch.Tensor: ...

    def release(self) -> None:
        """Let go of what was mapped for tensors that were read."""


@dataclass(frozen=True)
class Slice:
    """Tensor `name`, or its `layer` of `layers` where they are stacked. shape: without the layer axis."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    layer: int | None = None
    layers: int | None = None

    @property
    def label(self) -> str:
        """Its name with the layer's number in it, as patterns (configs/parameter_names.py) and other formats say."""
        return numbered(self.name, self.layer)

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * self.dtype.itemsize

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where it begins in the stored tensor."""
        inner = (0,) * len(self.shape)
        return inner if self.layer is None else (self.layer, *inner)

    @property
    def stored(self) -> tuple[int, ...]:
        """Its shape with the layer axis, where the stored tensor has one."""
        return self.shape if self.layer is None else (1, *self.shape)

    @property
    def whole(self) -> tuple[int, ...]:
        """Shape of the stored tensor that it is a slice of."""
        return self.shape if self.layers is None else (self.layers, *self.shape)

    def read(self, reader: TensorReader) -> torch.Tensor:
        """The slice, perhaps a view of a mapped file. What the reader had mapped before is let go, so that memory does
        not grow with the checkpoint."""
        reader.release()
        return reader.read(self.name, self.layer)


def numbered(name: str, layer: int | None) -> str:
    """A stacked tensor's name with the number of its `layer` in it; the name itself where there is none."""
    if layer is None:
        return name
    head, _, tail = name.partition(_STACK)
    return f"{head}{_STACK}{layer}.{tail}"


def without_number(name: str) -> str:
    """The inverse: the name of the stacked tensor that a layer's is a part of."""
    head, stacked, rest = name.partition(_STACK)
    return f"{head}{stacked}{rest.partition('.')[2]}" if stacked else name


def is_stacked(name: str) -> bool:
    """Whether a native tensor's first axis numbers the layer; without, its name holds the layer's number."""
    _, found, rest = name.partition(_STACK)
    return bool(found) and not rest.partition(".")[0].isdigit()


def slices(tensors: Mapping[str, TensorRecord]) -> Iterator[Slice]:
    """Slices of native tensors, in the order of `tensors`."""
    for name, record in tensors.items():
        dtype = getattr(torch, record.dtype)
        if is_stacked(name):
            count = record.shape[0]
            yield from (Slice(name, record.shape[1:], dtype, layer, count) for layer in range(count))
        else:
            yield Slice(name, record.shape, dtype)
