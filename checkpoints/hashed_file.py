"""A new file that knows its hash when it is written, and tensors in it as `torch.save` lays them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, cast

import torch
import xxhash

from checkpoints.archive import frame_of
from checkpoints.manifest import FileRecord
from checkpoints.strips import Strips

ALIGNED = 64  # bytes: archives begin there, so that their tensors can be used as they lie in a mapped file


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
