"""Torch's index of a distributed checkpoint (`.metadata`), read without trusting it.

Torch keeps the index as a pickle. Here it is unpickled with a closed list of names, each read as a class of ours
(`checkpoints.index`), so that a checkpoint from elsewhere cannot run code; whatever passes is then safe for Torch's and
Megatron's own readers of the same bytes.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import torch

from checkpoints.dtypes import name_of
from checkpoints.index import (
    TORCHS,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    MemoryFormat,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from checkpoints.manifest import TensorRecord
from checkpoints.pickle_scan import why_refused
from checkpoints.safety import is_plain_name, open_regular, quoted, size_of
from checkpoints.tiling import tiles
from checkpoints.torch_file import Region, load_tensor, refusal
from runtime.exits import BadInput

METADATA_FILE = ".metadata"

_READ_AS: dict[tuple[str, str], Any] = {
    **{name: kind for kind, name in TORCHS.items()},
    TORCHS[MemoryFormat]: int,  # whatever it was
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
    ("pathlib", "PosixPath"): PurePosixPath,
}
"""All that an index may name, and what it is read as."""


class _ClosedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _READ_AS:
            return _READ_AS[module, name]
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed here")


class _Fixed(type):
    """Classes on which nothing can be set."""

    def __setattr__(cls, name: str, value: Any) -> NoReturn:
        raise pickle.UnpicklingError(f"it sets {quoted(name)} on a class")


class _Trial(_ClosedUnpickler):
    """Unpickles with stand-ins for what is allowed: a pickle can set attributes on the very classes it names, which
    would outlive it. One that does fails here, where nothing is changed."""

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        if isinstance(found, torch.dtype) or found is torch.Size:
            return found  # which let nothing be set on them
        if name[0] == "_" and name != "_StorageInfo":
            return _Called()
        body: dict[str, Callable] = {} if is_dataclass(found) else {"__init__": lambda self, *_: None}
        if hasattr(found, "__setstate__"):
            body["__setstate__"] = lambda self, _: None
        return _Fixed(name, (), body)


class _Called:
    """Stands in for a function, and for what it returns."""

    __slots__ = ()

    def __call__(self, *_: Any) -> None:
        return None


def read_metadata(folder: Path) -> Metadata:
    """Read the index in `folder`.

    Raises BadInput where it is damaged, holds code, points outside the folder or past the end of a file, or names
    tensors whose pieces do not make them up.
    """
    path = folder / METADATA_FILE
    with open_regular(path) as stream:
        content = stream.read()
    try:
        if reason := why_refused(content):
            raise pickle.UnpicklingError(reason)
        _Trial(io.BytesIO(content)).load()
        index = _ClosedUnpickler(io.BytesIO(content)).load()
        if not isinstance(index, Metadata) or not isinstance(index.storage_data, dict):
            raise ValueError("not the index of a checkpoint")
        _check(folder, index)
    except BadInput:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"{path}: refused ({type(error).__name__}: {reason})") from error
    return index


def _check(folder: Path, index: Metadata) -> None:
    """Raise ValueError or BadInput where types, places or shapes of the index are not those of a checkpoint."""
    sizes: dict[str, int] = {}
    for place in index.storage_data.values():
        name = place.relative_path
        if not is_plain_name(name) or (folder / name).is_symlink():
            raise ValueError(f"points outside the checkpoint: {quoted(name)}")
        if name not in sizes:
            sizes[name] = size_of(folder / name)
        if not _are_whole((place.offset, place.length)) or place.offset + place.length > sizes[name]:
            raise ValueError(f"points past the end of {name}")
    for name, stored in index.state_dict_metadata.items():
        if not isinstance(name, str) or not name.isprintable():
            raise ValueError(f"absurd name {quoted(name)}")
        if isinstance(stored, TensorStorageMetadata):
            _check_tensor(index, name, stored)
        elif not isinstance(stored, BytesStorageMetadata):
            raise ValueError(f"{name} is neither a tensor nor an object")
        elif MetadataIndex(name) not in index.storage_data:
            raise ValueError(f"no place for {name}")


def _check_tensor(index: Metadata, name: str, stored: TensorStorageMetadata) -> None:
    if not _are_whole(stored.size) or not isinstance(stored.properties.dtype, torch.dtype):
        raise ValueError(f"{name} has an impossible shape or dtype")
    for chunk in stored.chunks:
        if not isinstance(chunk, ChunkStorageMetadata) or not _are_whole((*chunk.offsets, *chunk.sizes)):
            raise ValueError(f"{name} has an impossible piece")
        place = index.storage_data.get(MetadataIndex(name, torch.Size(chunk.offsets)))
        if place is None:
            raise ValueError(f"no place for {name}")
        if place.length < prod(chunk.sizes) * stored.properties.dtype.itemsize:
            raise ValueError(f"{name} has fewer bytes than its shape takes")
    if not tiles(stored.size, [(chunk.offsets, chunk.sizes) for chunk in stored.chunks]):
        raise ValueError(f"the pieces of {name} do not make up {quoted(list(stored.size))}")


def _are_whole(numbers: Any) -> bool:
    return all(type(number) is int and number >= 0 for number in numbers)


def tensor_records(index: Any) -> dict[str, TensorRecord]:
    """Name, shape and dtype of every tensor, by name, of an index that was read here or that is torch's own."""
    return {
        name: TensorRecord(tuple(stored.size), name_of(stored.properties.dtype))
        for name, stored in sorted(index.state_dict_metadata.items())
        if hasattr(stored, "chunks")
    }


def check_objects(folder: Path, index: Metadata) -> None:
    """Refuse stored objects that are more than plain data, because Torch's own reader would unpickle them whole."""
    for name, stored in objects(index):
        try:
            torch.load(io.BytesIO(read_bytes(folder, index, stored)), weights_only=True)
        except Exception as error:  # a damaged or hostile archive can raise nearly anything
            raise refusal(f"{folder}: object {name}", error) from error


def check_pieces(folder: Path, index: Metadata) -> None:
    """Raise BadInput where a stored tensor's piece is not a plain tensor of the shape and dtype that the index says.
    Data are not read."""
    for name, stored in index.state_dict_metadata.items():
        if isinstance(stored, TensorStorageMetadata):
            for chunk in stored.chunks:
                _check_piece(folder, index, name, chunk, stored.properties.dtype)


def _check_piece(folder: Path, index: Metadata, name: str, chunk: ChunkStorageMetadata, dtype: torch.dtype) -> None:
    place = _place_of(folder, index, MetadataIndex(name, chunk.offsets))
    path = folder / place.relative_path
    with open_regular(path) as stream:
        tensor = load_tensor(Region(stream, place.offset, place.length), place.length, f"{path}: {name}", data=False)
    if tensor.shape != chunk.sizes or tensor.dtype != dtype:
        found, said = f"{list(tensor.shape)} {tensor.dtype}", f"{list(chunk.sizes)} {dtype}"
        raise BadInput(f"{path}: a piece of {name} is {found}, the index says {said}")


def objects(index: Metadata) -> Iterator[tuple[str, MetadataIndex]]:
    """Names and places of stored objects that are not tensors."""
    for name, stored in index.state_dict_metadata.items():
        if isinstance(stored, BytesStorageMetadata):
            yield name, MetadataIndex(name)


def read_bytes(folder: Path, index: Metadata, place: MetadataIndex) -> bytes:
    """The bytes stored for one entry. Raises BadInput where the file ends early or the entry is not there."""
    where = _place_of(folder, index, place)
    with open_regular(folder / where.relative_path) as stream:
        stream.seek(where.offset)
        found = stream.read(where.length)
    if len(found) != where.length:
        raise BadInput(f"{folder / where.relative_path}: ends before {place.fqn} does")
    return found


def _place_of(folder: Path, index: Metadata, place: MetadataIndex) -> Any:
    if place not in index.storage_data:
        raise BadInput(f"{folder}: the index has no place for {place.fqn}")
    return index.storage_data[place]
