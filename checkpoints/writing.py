"""One rank's tensor file of a `torch_dist` folder, written and hashed in one pass."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import torch
import xxhash
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.storage import WriteResult

from checkpoints.archive import frame_of
from checkpoints.manifest import FileRecord
from checkpoints.pieces import Piece
from checkpoints.strips import Strips


@dataclass(frozen=True)
class Written:
    """What one rank wrote: where each piece is, and size and hash of its file by name."""

    places: list[WriteResult]
    files: dict[str, FileRecord]


ALIGNED = 64  # bytes: archives begin there, so that their tensors can be used as they lie in a mapped file


class Abandoned(Exception):
    """Another rank failed, so that what this one writes is of no use."""


def write_pieces(folder: Path, rank: int, pieces: Iterable[Piece], abandon: threading.Event) -> Written:
    """Write this rank's pieces into one file of `folder` and sync it; no file where there are none.

    The pieces' tensors may be on any device; they are brought to the CPU one at a time. An iterator's, which are made
    one at a time too, get a file in any case. Raises OSError where the disk fails, with the file's name, and Abandoned
    soon after `abandon` is set.
    """
    if not pieces:
        return Written([], {})
    name = f"__{rank}_0.distcp"
    with HashedFile(folder / name) as file:
        places = [_write_piece(file, name, piece, abandon) for piece in pieces]
        record = file.finish()
    return Written(places, {name: record})


def _write_piece(file: HashedFile, name: str, piece: Piece, abandon: threading.Event) -> WriteResult:
    if abandon.is_set():
        raise Abandoned
    file.write(bytes(-file.size % ALIGNED))
    start = file.size
    if isinstance(piece.data, io.BytesIO):
        file.write(piece.data.getbuffer())
    else:
        write_tensor(file, piece.data.cpu())
    length = file.size - start
    return WriteResult(piece.item.index, length, _StorageInfo(name, start, length))


def write_tensor(file: HashedFile, tensor: torch.Tensor) -> None:
    """Append a CPU tensor as `torch.save` writes one. Raises OSError where the disk fails."""
    if tensor.untyped_storage().nbytes() != tensor.nbytes:
        tensor = tensor.clone()  # torch.save writes a view's whole storage
    try:
        torch.save(tensor, cast(IO[bytes], file))
    except RuntimeError as error:  # Torch's archive writer hides what the disk said behind its own error
        raise file.error or error from error


def write_strips(file: HashedFile, strips: Strips, leading: tuple[int, ...] = ()) -> None:
    """Append a tensor, byte for byte as `torch.save` writes it, with axes of length 1 `leading` its own. Raises OSError
    where the disk fails."""
    shape = (*leading, *strips.shape)
    if not strips.nbytes:
        write_tensor(file, torch.empty(shape, dtype=strips.dtype))
        return
    frame = frame_of(shape, strips.dtype)
    file.write(frame.before)
    for block in strips.blocks():
        file.write(block.data)
    file.write(frame.after)


class HashedFile:
    """A new file that hashes what passes through, counts it, and remembers why a write failed."""

    def __init__(self, path: Path) -> None:
        self.size = 0
        self.error: OSError | None = None
        self._path = path
        self._digest = xxhash.xxh3_64()
        self._file = path.open("wb")

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._file.close()
        except OSError as error:  # what was still buffered finds the disk full too
            raise self._named(error) from error

    def write(self, content: bytes | memoryview) -> int:
        try:
            self._file.write(content)
        except OSError as error:
            self.error = self.error or self._named(error)
            raise self.error from error
        self._digest.update(content)
        length = memoryview(content).nbytes
        self.size += length
        return length

    def flush(self) -> None:
        """Asked for after every tensor; `finish` does it once."""

    def finish(self) -> FileRecord:
        """Put everything on disk; returns size and hash."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._named(error) from error
        return FileRecord(self.size, self._digest.hexdigest())

    def _named(self, error: OSError) -> OSError:
        return OSError(error.errno, error.strerror, str(self._path))
