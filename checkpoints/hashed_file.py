"""A new file that knows its hash when it is written, and tensors in it as `torch.save` lays them."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import IO, cast

import torch
import xxhash

from checkpoints.archive import frame_of
from checkpoints.direct import DirectFile, Run
from checkpoints.manifest import FileRecord
from checkpoints.strips import Bytes

ALIGNED = 64  # bytes: archives begin there, so that their tensors can be used as they lie in a mapped file


def write_tensor(file: HashedFile, tensor: torch.Tensor) -> None:
    """Append a CPU tensor as `torch.save` writes one. Raises OSError where the disk fails."""
    if tensor.untyped_storage().nbytes() != tensor.nbytes:
        tensor = tensor.clone()  # torch.save writes a view's whole storage
    try:
        torch.save(tensor, cast(IO[bytes], file))
    except RuntimeError as error:  # Torch's archive writer hides what the disk said behind its own error
        raise file.error or error from error


class Archive:
    """A tensor in a file, byte for byte as `torch.save` writes it, whose bytes are written as they come."""

    def __init__(self, file: HashedFile, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Begins at the next aligned place of the file. Raises OSError where the disk fails, as `write` does."""
        file.write(bytes(-file.size % ALIGNED))
        self.begin = file.size
        self._file = file
        if not prod(shape):
            write_tensor(file, torch.empty(shape, dtype=dtype))
            self.end = file.size
            return
        self._frame = frame_of(shape, dtype)
        self.end = self.begin + self._frame.size
        file.write(self._frame.before)
        self._at = file.size

    def write(self, content: Bytes) -> None:
        """Append contiguous bytes of the tensor; after the last ones it is complete. Raises ValueError where the file
        was written to otherwise meanwhile."""
        if self._file.size != self._at:
            raise ValueError(f"{self._file.name}: an archive was begun inside another")
        self._at += self._file.write(content.data)
        if self._at + len(self._frame.after) == self.end:
            self._file.write(self._frame.after)


class HashedFile:
    """A new file that hashes what passes through, counts it, and remembers why a write failed."""

    def __init__(self, path: Path) -> None:
        self.size = 0
        self.error: OSError | None = None
        self.name = path.name
        self._path = path
        self._digest = xxhash.xxh3_64()
        self._file = DirectFile(path, new=True)
        self._run = Run(self._file)

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._file.close()
        except OSError as error:
            raise self._named(error) from error

    def write(self, content: bytes | memoryview) -> int:
        view = memoryview(content).cast("B")
        try:
            self._run.write(view)
        except OSError as error:
            self.error = self.error or self._named(error)
            raise self.error from error
        self._digest.update(view)
        self.size += len(view)
        return len(view)

    def flush(self) -> None:
        """Asked for after every tensor; `finish` does it once."""

    def finish(self) -> FileRecord:
        """Put everything on disk; returns size and hash."""
        try:
            self._run.flush()
            self._file.sync()
        except OSError as error:
            raise self._named(error) from error
        return FileRecord(self.size, self._digest.hexdigest())

    def _named(self, error: OSError) -> OSError:
        return OSError(error.errno, error.strerror, str(self._path))
