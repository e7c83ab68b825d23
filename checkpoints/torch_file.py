"""Files that torch.save wrote, opened without trust: a plain archive, plain data in it, no code run."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from checkpoints.safety import open_regular, quoted
from runtime.exits import BadInput

WAY_OUT = "where you trust it, load it yourself and save plain tensors"


class Region(io.RawIOBase):
    """`length` bytes of an open file from `start` on, as a file of their own; the file has to stay open."""

    def __init__(self, stream: BinaryIO, start: int, length: int) -> None:
        self._stream, self._start, self._length, self._place = stream, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise ValueError("before the beginning")
        self._place = base + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        most = max(0, min(len(view), self._length - self._place))
        self._stream.seek(self._start + self._place)
        count = self._stream.readinto(view[:most])  # type: ignore[attr-defined]
        self._place += count
        return count


def load_plain(path: Path, *, mmap: bool = True) -> Any:
    """What a file of torch.save holds, tensors on the CPU and, with `mmap`, views of the file.

    Raises BadInput, one line with the way out, where the file is no plain one, is no archive of torch.save, is
    compressed, or holds more than tensors and plain data (such as code, or a class of its own).
    """
    with open_regular(path) as stream:
        check_archive(stream, os.fstat(stream.fileno()).st_size, str(path))
        stream.seek(0)
        try:
            return torch.load(path if mmap else stream, map_location="cpu", weights_only=True, mmap=mmap)
        except Exception as error:  # a damaged or hostile archive can raise nearly anything
            raise refusal(str(path), error) from error


def load_tensor(region: BinaryIO | Region, length: int, where: str, *, data: bool = True) -> torch.Tensor:
    """The one tensor that an archive of `length` bytes holds, on the CPU; without `data` on the meta device, unread.

    Raises BadInput, beginning with `where`, for anything else than an archive of one plain tensor.
    """
    check_archive(region, length, where)
    try:
        tensor = torch.load(region, map_location="cpu" if data else "meta", weights_only=True)  # type: ignore[arg-type]
    except Exception as error:  # as above
        raise refusal(where, error) from error
    if type(tensor) is not torch.Tensor or tensor.layout is not torch.strided:
        raise BadInput(f"{where}: holds no plain tensor")
    return tensor


def refusal(where: str, error: Exception) -> BadInput:
    """Why torch would not load something, in one line."""
    lines = str(error).splitlines() or [""]
    reason = next((line.strip() for line in lines if "Unsupported" in line or "GLOBAL" in line), lines[0])
    return BadInput(f"{where}: refused, it holds more than plain tensors or is damaged ({reason[:200]}); {WAY_OUT}")


def check_archive(stream: BinaryIO | Region, length: int, where: str) -> None:
    """Check that it is a zip file whose members are stored as they are, so that none is larger than the file."""
    stream.seek(0)
    if stream.read(4) != b"PK\x03\x04":
        raise BadInput(f"{where}: no archive of torch.save (of PyTorch 1.6 or later); {WAY_OUT}")
    try:
        with zipfile.ZipFile(stream) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, EOFError) as error:
        raise BadInput(f"{where}: a damaged archive ({error})") from error
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED:
            raise BadInput(f"{where}: its {quoted(member.filename)} is compressed, which torch.save never does")
    if sum(member.file_size for member in members) > length:
        raise BadInput(f"{where}: its members say more bytes than it has")
    stream.seek(0)
