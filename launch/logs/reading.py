"""One log file as lines with a time, a node, a rank and a level each, read as they are asked for.

A file may be far larger than memory, may be growing, and may end in the middle of a line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import IO

from launch.logs.sources import Source
from runtime.log_lines import Level, Levels, Stamp, parse

UNKNOWN = "-"
_LOOK = 1 << 16  # bytes within which a stamp is looked for
_HELD = 10_000  # lines without a stamp that wait for the next one
# Lines that compiled code and torchrun write with a time of their own, by this host's clock and without a year.
_OWN_TIME = re.compile(r"(?:\[rank(\d+)\]:)?\s*\[?[DIWEF](\d{1,2})(\d\d) (\d\d):(\d\d):(\d\d)\.(\d{3})")
_SLURM_TIME = re.compile(r"slurmstepd: .* AT (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)")


@dataclass(frozen=True)
class Line:
    """time: seconds since 1970; rank: None where it is not known, -1: a launcher."""

    time: float
    node: str
    rank: int | None
    level: Level
    text: str
    stage: str = ""

    def __str__(self) -> str:
        stamp = str(Stamp(self.time, self.node, 0 if self.rank is None else self.rank, self.level))
        if self.rank is None:
            stamp = stamp.replace(" r0 ", f" {UNKNOWN} ", 1)
        return f"{stamp} {self.text}"


class Reader:
    """Reads one source from its first line at or after `since` (seconds since 1970; None: the beginning) on."""

    def __init__(self, source: Source, since: float | None = None) -> None:
        self._source = source
        self._since = since
        self._offset: int | None = None  # None: not begun
        self._time = 0.0
        self._node = UNKNOWN
        self._rank = source.rank
        self._levels = Levels()

    def lines(self, *, torn: bool) -> Iterator[Line]:
        """Lines that came since the last call, to the present end of the file; times never go back.

        torn: with a last line that has no line break yet; without, it is left for the next call.
        """
        try:
            with self._source.file.open("rb") as file:
                self._begin(file)
                yield from self._stamped(file, torn)
        except FileNotFoundError:
            return

    def _begin(self, file: IO[bytes]) -> None:
        status = os.fstat(file.fileno())
        if self._offset is None:
            self._offset = 0 if self._since is None else _first_at(file, self._since, status.st_size)
            file.seek(self._offset)
            stamp = _next_stamp(file)
            self._time = stamp.time if stamp else status.st_mtime
            self._node = stamp.node if stamp else UNKNOWN
        elif self._offset > status.st_size:  # cut, or another file now
            self._offset = 0
        file.seek(self._offset)

    def _stamped(self, file: IO[bytes], torn: bool) -> Iterator[Line]:
        held: list[Line] = []
        while raw := file.readline():
            if not raw.endswith(b"\n") and not torn:
                break
            assert self._offset is not None
            self._offset += len(raw)
            text = raw.decode("utf-8", "replace").rstrip("\r\n")
            line, has_time = self._line(text)
            if not self._source.closed_by_stamp:
                yield from self._wanted([line])
                continue
            held.append(line)
            if has_time or len(held) == _HELD:
                yield from self._wanted([replace(one, time=line.time) for one in held])
                held = []
        if held:
            self._time = max(self._time, os.fstat(file.fileno()).st_mtime)
            yield from self._wanted([replace(one, time=self._time) for one in held])

    def _wanted(self, lines: list[Line]) -> Iterator[Line]:
        for line in lines:
            if self._since is None or line.time >= self._since:
                yield line

    def _line(self, text: str) -> tuple[Line, bool]:
        """A line of text, and whether it told its time."""
        if found := parse(text):
            stamp, text = found
            self._time, self._node, self._rank = max(self._time, stamp.time), stamp.node, stamp.rank
            level = stamp.level
            self._levels.of(text)
        else:
            level = self._source.level if self._source.level is not None else self._levels.of(text)
            own, rank = _own_time(text, self._time)
            self._time = max(self._time, own or 0.0)
            if rank is not None:
                return Line(self._time, self._node, rank, level, text, self._source.stage), True
            rank = self._source.rank if self._source.rank is not None else self._rank
            return Line(self._time, self._node, rank, level, text, self._source.stage), own is not None
        return Line(self._time, self._node, self._rank, level, text, self._source.stage), True


def _own_time(text: str, near: float) -> tuple[float | None, int | None]:
    """The time that an unstamped line tells, in the year of `near`, and its rank."""
    if found := _OWN_TIME.match(text):
        rank, *numbers = found.groups()
        month, day, hour, minute, second, thousandths = map(int, numbers)
        try:
            when = datetime(
                datetime.fromtimestamp(near).year, month, day, hour, minute, second, thousandths * 1000
            ).timestamp()
        except ValueError:
            return None, None
        return when, None if rank is None else int(rank)
    if found := _SLURM_TIME.search(text):
        return datetime.fromisoformat(found[1]).timestamp(), None
    return None, None


def _first_at(file: IO[bytes], since: float, size: int) -> int:
    """A place at the start of a line and before the first stamp at or after `since`, not far from it, by bisection."""
    low, high = 0, size
    while high - low > _LOOK:
        middle = (low + high) // 2
        file.seek(middle)
        file.readline()
        stamp = _next_stamp(file)
        if stamp is not None and stamp.time < since:
            low = middle
        else:
            high = middle
    file.seek(low)
    if low:
        file.readline()
    return file.tell()


def _next_stamp(file: IO[bytes]) -> Stamp | None:
    read = 0
    while read < _LOOK and (raw := file.readline(_LOOK)):
        read += len(raw)
        if found := parse(raw[:200].decode("utf-8", "replace")):
            return found[0]
    return None
