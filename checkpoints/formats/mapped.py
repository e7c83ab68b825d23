"""Tensors of `torch_dist` files as views of the mapped files: nothing is copied, and only what is used is read."""

from __future__ import annotations

import io
from math import prod
from pathlib import Path
from typing import BinaryIO, cast

import torch

from checkpoints.archive import frame_of
from checkpoints.index import StorageInfo
from checkpoints.safety import size_of
from checkpoints.torch_file import load_tensor
from runtime.exits import BadInput

_RECORD = "data/0"  # where torch.save puts the only storage of a tensor


class MappedFiles:
    """The files of one folder, mapped as they are asked for. A tensor keeps its file mapped for as long as it is used;
    writing to it changes a copy in memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, torch.Tensor] = {}

    def release(self) -> None:
        """Unmap the files: their pages no longer count as this process's memory."""
        self._files.clear()

    def tensor(self, name: str, place: StorageInfo, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        """The tensor that `torch.save` wrote at `place`. Raises BadInput where the file ends early, or what is there is
        no such tensor."""
        path = self._folder / place.relative_path
        file = self._file(place.relative_path)
        if not 0 <= place.offset <= place.offset + place.length <= len(file):
            raise BadInput(f"{path}: ends before {name} does")
        region = file[place.offset : place.offset + place.length]
        found = _plain(region, tuple(shape), dtype)
        if found is not None:
            return found
        found = _view(region, f"{path}: {name}")
        if found.shape != shape or found.dtype != dtype:
            raise BadInput(
                f"{path}: a piece of {name} is {list(found.shape)} {found.dtype}, the index says {list(shape)} {dtype}"
            )
        return found

    def _file(self, name: str) -> torch.Tensor:
        if name not in self._files:
            path = self._folder / name
            try:
                storage = torch.UntypedStorage.from_file(str(path), False, size_of(path))
            except RuntimeError as error:
                raise BadInput(f"{path}: cannot be read ({str(error).splitlines()[0]})") from error
            self._files[name] = torch.empty(0, dtype=torch.uint8).set_(cast(torch.UntypedStorage, storage))
        return self._files[name]


def _plain(region: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor | None:
    """The tensor as a view, where the archive is byte for byte what is written for one of its shape and dtype: then
    there is nothing to find out about it."""
    nbytes = prod(shape) * dtype.itemsize
    if not 0 < nbytes < len(region):
        return None
    frame = frame_of(shape, dtype)
    begin, end = len(frame.before), len(frame.before) + nbytes
    content = region.numpy()
    if content[:begin].tobytes() != frame.before or content[end:].tobytes() != frame.after:
        return None
    if content.ctypes.data % dtype.itemsize:
        return None
    return region[begin:end].view(dtype).view(shape)


def _view(region: torch.Tensor, where: str) -> torch.Tensor:
    """The tensor of an archive of `torch.save`, as a view of it where it lies there as one run of elements."""
    window = cast(BinaryIO, _Window(region))
    described = load_tensor(window, len(region), where, data=False)
    if not described.is_contiguous() or described.untyped_storage().nbytes() != described.nbytes:
        return load_tensor(window, len(region), where)
    window.seek(0)
    begin = torch._C.PyTorchFileReader(window).get_record_offset(_RECORD)  # type: ignore[attr-defined]
    content = region[begin : begin + described.nbytes]
    if len(content) != described.nbytes:
        raise BadInput(f"{where}: the archive ends early")
    if described.nbytes == 0:
        return torch.empty(described.shape, dtype=described.dtype)
    if content.data_ptr() % described.element_size():
        content = content.clone()  # another program laid it on an odd byte
    return torch.from_numpy(content.numpy()).view(described.dtype).view(described.shape)


class _Window(io.RawIOBase):
    """Bytes of a tensor as a file to read from."""

    def __init__(self, content: torch.Tensor) -> None:
        self._content = content.numpy().data
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._content)}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        found = self._content[self._at : self._at + len(buffer)]
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)
