"""A line on how far a long conversion is: bytes, bytes a second, and the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

_QUIET = 5.0  # seconds: what is done sooner needs no line
_LINES = 30.0  # seconds between lines where they do not overwrite each other


class Progress:
    """Counts bytes towards `total` and tells of them: on a terminal on one line, else in a line now and then."""

    def __init__(
        self, doing: str, total: int, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._doing = doing
        self._total = total
        self._stream = stream or sys.stderr
        self._clock = clock
        self._done = 0
        self._started = self._told = clock()
        self._drawn = False

    def add(self, nbytes: int) -> None:
        """So many bytes more are done."""
        self._done += nbytes
        now = self._clock()
        terminal = self._stream.isatty()
        if now - self._started >= _QUIET and now - self._told >= (0.2 if terminal else _LINES):
            self._told = now
            self._drawn = terminal
            self._stream.write(f"\r\x1b[K{self.line()}" if terminal else f"megaphone: {self.line()}\n")
            self._stream.flush()

    def close(self) -> None:
        """Take the line off the terminal again."""
        if self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def line(self) -> str:
        """What there is to say."""
        rate = self._done / max(self._clock() - self._started, 1e-9)
        left = (self._total - self._done) / rate if rate else 0.0
        return (
            f"{self._doing}: {self._done / 1e9:,.2f} of {self._total / 1e9:,.2f} GB, {rate / 1e6:,.0f} MB/s, "
            f"{int(left) // 60}:{int(left) % 60:02d} left"
        )
