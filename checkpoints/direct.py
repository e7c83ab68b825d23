"""Files written past the page cache, where the file system lets them be.

Through the cache, a byte costs several times the processor's time that it takes to hand it to the disk, and what others
had in there has to go. Past it, memory and file are dealt with in whole pages; what is none goes through the cache.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from checkpoints.strips import Bytes

_PAGE = 4096
_BUFFER = 1 << 22  # bytes handed to the disk in one go


class DirectFile:
    """An open file that bytes are put into at any place."""

    def __init__(self, path: Path, *, new: bool) -> None:
        """Raises OSError, with the file's name, where it cannot be opened."""
        self._cached = os.open(path, os.O_WRONLY | (os.O_CREAT | os.O_TRUNC if new else 0), 0o666)
        self._direct: int | None = None
        with suppress(OSError):  # not every file system knows of it
            self._direct = os.open(path, os.O_WRONLY | os.O_DIRECT)

    def put(self, content: Bytes, at: int) -> None:
        """Write `content`, which begins as far behind a page's begin in memory as it does in the file. Raises OSError
        where the disk fails."""
        low = min(-at % _PAGE, len(content))
        high = max(low, len(content) - (at + len(content)) % _PAGE)
        self._write(self._cached, content[:low], at)
        self._write_pages(content[low:high], at + low)
        self._write(self._cached, content[high:], at + high)

    def _write_pages(self, content: Bytes, at: int) -> None:
        if self._direct is not None:
            try:
                self._write(self._direct, content, at)
                return
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                os.close(self._direct)  # it wants more than whole pages
                self._direct = None
        self._write(self._cached, content, at)

    @staticmethod
    def _write(descriptor: int, content: Bytes, at: int) -> None:
        while len(content):
            written = os.pwrite(descriptor, content.data, at)
            content, at = content[written:], at + written

    def sync(self) -> None:
        """Put everything on disk. Raises OSError where it fails."""
        os.fsync(self._cached)

    def close(self) -> None:
        """Close it, synced or not. Raises OSError where the disk says only now that it failed."""
        if self._direct is not None:
            os.close(self._direct)
            self._direct = None
        os.close(self._cached)


class Run:
    """Bytes that follow one another in a file from `begin` on. They are there once it is flushed."""

    def __init__(self, file: DirectFile, begin: int = 0) -> None:
        self._file = file
        self._low = self._high = begin % _PAGE
        self._base = begin - self._low  # where in the file the buffer's begin belongs
        self._buffer: Bytes | None = None

    @property
    def end(self) -> int:
        """Where in the file the next byte belongs."""
        return self._base + self._high

    def write(self, content: memoryview) -> None:
        """Append bytes. Raises OSError where the disk fails."""
        while length := len(content):
            if self._buffer is None:
                self._buffer = _pages()
            count = min(length, _BUFFER - self._high)
            high = self._high + count
            self._buffer[self._high : high] = np.frombuffer(content[:count], np.uint8)
            content, self._high = content[count:], high
            if high == _BUFFER:
                self._put(self._buffer)
                self._base, self._low, self._high = self._base + _BUFFER, 0, 0

    def flush(self) -> None:
        """Write what is still here, and let go of its memory; likewise."""
        if self._buffer is not None:
            self._put(self._buffer)
            self._low, self._buffer = self._high, None

    def _put(self, buffer: Bytes) -> None:
        self._file.put(buffer[self._low : self._high], self._base + self._low)


def _pages() -> Bytes:
    """A buffer that begins where a page does."""
    room = np.empty(_BUFFER + _PAGE, np.uint8)
    first = -room.ctypes.data % _PAGE
    return room[first : first + _BUFFER]
