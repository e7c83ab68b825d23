"""What `torch.save` writes around the data of a tensor: known from its shape and dtype, so that data need not go
through it, and an archive is recognised without being taken apart."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from io import SEEK_CUR
from math import prod
from typing import IO, Any, cast

import torch


@dataclass(frozen=True)
class Frame:
    """The bytes of an archive before the tensor's own and after them."""

    before: bytes
    nbytes: int
    after: bytes

    @property
    def size(self) -> int:
        return len(self.before) + self.nbytes + len(self.after)


class _Sink:
    """Keeps what is written, and where data were left out."""

    def __init__(self) -> None:
        self.before: list[bytes] = []
        self.after: list[bytes] = []
        self.left_out = 0
        self.largest = 0

    def write(self, content: Any) -> int:
        (self.after if self.left_out else self.before).append(bytes(content))
        return len(content)

    def seek(self, offset: int, whence: int) -> None:
        """Asked for in place of a record's data."""
        assert whence == SEEK_CUR
        self.left_out += offset

    def flush(self) -> None:
        pass


@lru_cache(maxsize=256)
def frame_of(shape: tuple[int, ...], dtype: torch.dtype) -> Frame:
    """The frame of a contiguous CPU tensor of at least one element, with no checksum of its data."""
    nbytes = prod(shape) * dtype.itemsize
    sink = _Sink()
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        with torch.serialization.skip_data():
            torch.save(torch.empty(shape, dtype=dtype), cast(IO[bytes], sink))  # memory that is never touched
    finally:
        torch.serialization.set_crc32_options(before)
    return Frame(b"".join(sink.before), nbytes, b"".join(sink.after))
