"""Torch's index of a distributed checkpoint as plain data: what is in it, where, and nothing else.

The classes and their fields are called as in `torch.distributed.checkpoint`, so that a pickled index can be read into
them (`checkpoints.metadata`) and made of them by who has no need of that package, whose import takes as long as half of
torch's.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch

_VERSION = "1.0.0"  # of what `.metadata` holds


@dataclass
class ChunkStorageMetadata:
    """A piece of a tensor: where it begins and its shape."""

    offsets: torch.Size
    sizes: torch.Size


class MemoryFormat(Enum):
    """How a tensor lay in memory when it was written: as here always."""

    contiguous = 0


@dataclass
class TensorProperties:
    """Of the fields that torch keeps, the one that counts."""

    dtype: torch.dtype

    def __getstate__(self) -> tuple[Any, ...]:
        """As torch pickles them: with layout, requires_grad, memory format, pin_memory."""
        return self.dtype, torch.strided, False, MemoryFormat.contiguous, False

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
    version: str = _VERSION


_PACKAGE = "torch.distributed.checkpoint"
TORCHS: dict[type, tuple[str, str]] = {
    **{
        kind: (f"{_PACKAGE}.metadata", kind.__name__)
        for kind in (
            Metadata,
            TensorStorageMetadata,
            BytesStorageMetadata,
            ChunkStorageMetadata,
            TensorProperties,
            MetadataIndex,
            StorageMeta,
        )
    },
    MemoryFormat: (f"{_PACKAGE}.metadata", "_MEM_FORMAT_ENCODING"),
    StorageInfo: (f"{_PACKAGE}.filesystem", "_StorageInfo"),
}
"""Module and name of torch's class for each of ours."""


class _Pickler(pickle._Pickler):
    """Names torch's classes. The compiled pickler would import them first."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if obj not in TORCHS:
            super().save_global(obj, name)  # type: ignore[misc]
            return
        module, name = TORCHS[obj]
        self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())  # type: ignore[attr-defined]
        self.memoize(obj)  # type: ignore[attr-defined]


def pickled(index: Metadata) -> bytes:
    """The bytes of `.metadata`, for torch's readers and ours."""
    written = io.BytesIO()
    _Pickler(written, protocol=4).dump(index)
    return written.getvalue()
