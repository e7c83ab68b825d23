"""Torch's index of a distributed checkpoint as plain data: what is in it, where, and nothing else.

The classes and their fields are called as in `torch.distributed.checkpoint`, so that a pickled index can be read into
them (`checkpoints.metadata`) by who has no need of that package, whose import takes as long as half of torch's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class ChunkStorageMetadata:
    """A piece of a tensor: where it begins and its shape."""

    offsets: torch.Size
    sizes: torch.Size


@dataclass
class TensorProperties:
    """Of the fields that torch keeps, the one that counts."""

    dtype: torch.dtype

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """As torch pickles them: the first of a tuple."""
        (self.dtype, *_) = state


@dataclass
class TensorStorageMetadata:
    """A tensor, whole, and the pieces that make it up."""

    properties: TensorProperties
    size: torch.Size
    chunks: list[ChunkStorageMetadata]


@dataclass
class BytesStorageMetadata:
    """An object that is no tensor."""


@dataclass
class StorageMeta:
    """Where an index was first written; of no use to a reader."""


@dataclass(frozen=True)
class MetadataIndex:
    """What is stored in one place: an object, or the piece of a tensor that begins at `offset`."""

    fqn: str
    offset: Sequence[int] | None = None


@dataclass
class StorageInfo:
    """Where that is: `length` bytes from `offset` on in a file of the folder."""

    relative_path: str
    offset: int
    length: int


@dataclass
class Metadata:
    """The index: what there is, by name, and where its parts are."""

    state_dict_metadata: dict[str, TensorStorageMetadata | BytesStorageMetadata]
    storage_data: dict[MetadataIndex, StorageInfo]
