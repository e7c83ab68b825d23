"""Torch's index of a distributed checkpoint (`.metadata`), read without trusting it.

Torch keeps the index as a pickle. Here it is unpickled with a closed list of names, so that a checkpoint from
elsewhere cannot run code; whatever passes is then safe for Torch's and Megatron's own readers of the same bytes.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from checkpoints.manifest import TensorRecord
from runtime.exits import BadInput

METADATA_FILE = ".metadata"

_CHECKPOINT = "torch.distributed.checkpoint"
_ALLOWED = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
    *(
        (f"{_CHECKPOINT}.metadata", name)
        for name in (
            "Metadata",
            "TensorStorageMetadata",
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "TensorProperties",
            "MetadataIndex",
            "StorageMeta",
            "_MEM_FORMAT_ENCODING",
        )
    ),
    (f"{_CHECKPOINT}.filesystem", "_StorageInfo"),
}


class _ClosedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed here")


def read_metadata(folder: Path) -> Metadata:
    """Read the index in `folder`. Raises BadInput where it is damaged, holds code, or points outside the folder."""
    path = folder / METADATA_FILE
    try:
        index = _ClosedUnpickler(io.BytesIO(path.read_bytes())).load()
    except FileNotFoundError as error:
        raise BadInput(f"{path}: missing") from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise BadInput(f"{path}: refused ({type(error).__name__}: {error})") from error
    if not isinstance(index, Metadata) or not isinstance(index.storage_data, dict):
        raise BadInput(f"{path}: refused (not the index of a checkpoint)")
    for place in index.storage_data.values():
        name = place.relative_path
        if not isinstance(name, str) or Path(name).name != name or name == ".." or (folder / name).is_symlink():
            raise BadInput(f"{path}: refused (points outside the checkpoint: {name!r})")
    return index


def tensor_records(index: Metadata) -> dict[str, TensorRecord]:
    """Name, shape and dtype of every tensor, by name."""
    return {
        name: TensorRecord(tuple(stored.size), str(stored.properties.dtype).removeprefix("torch."))
        for name, stored in sorted(index.state_dict_metadata.items())
        if isinstance(stored, TensorStorageMetadata)
    }


def check_objects(folder: Path, index: Metadata) -> None:
    """Refuse stored objects that are more than plain data, because Torch's own reader would unpickle them whole."""
    for name, stored in objects(index):
        try:
            torch.load(io.BytesIO(read_bytes(folder, index, stored)), weights_only=True)
        except Exception as error:  # a damaged or hostile archive can raise nearly anything
            raise BadInput(f"{folder}: object {name} refused: {str(error).splitlines()[0]}") from error


def objects(index: Metadata) -> Iterator[tuple[str, MetadataIndex]]:
    """Names and places of stored objects that are not tensors."""
    for name, stored in index.state_dict_metadata.items():
        if isinstance(stored, BytesStorageMetadata):
            yield name, MetadataIndex(name)


def read_bytes(folder: Path, index: Metadata, place: MetadataIndex) -> bytes:
    """The bytes stored for one entry. Raises BadInput where the file ends early or the entry is not there."""
    if place not in index.storage_data:
        raise BadInput(f"{folder}: the index has no place for {place.fqn}")
    where = index.storage_data[place]
    with (folder / where.relative_path).open("rb") as stream:
        stream.seek(where.offset)
        found = stream.read(where.length)
    if len(found) != where.length:
        raise BadInput(f"{folder / where.relative_path}: ends before {place.fqn} does")
    return found
