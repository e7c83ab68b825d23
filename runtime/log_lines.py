"""Lines of a rank's log: `2026-11-30T04:31:02.123+00:00 node2 r3 E CUDA error: ...`: time, node, rank, level, text.

A rank stamps what it prints itself, wherever its output goes (`stamp_output`); a launcher that shows the output of a
rank as it comes keeps stamps out of what it shows and stamps what it logs (`Stamper`). What compiled code writes past
Python has no stamp: readers take it for a line of the time and rank before it.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Any, TextIO

LINES_STAMPED = "MEGAPHONE_LINES_STAMPED"
"""Variable of a rank whose output is stamped by whoever reads it."""


class Level(IntEnum):
    """How bad a line is, in order; in a stamp it is the first letter of its name."""

    debug = 0
    info = 1
    warning = 2
    error = 3


@dataclass(frozen=True)
class Stamp:
    """Who said a line, when and how bad it is. time: seconds since 1970; rank -1: a launcher, not a rank."""

    time: float
    node: str
    rank: int
    level: Level

    def __str__(self) -> str:
        when = datetime.fromtimestamp(self.time).astimezone().isoformat(timespec="milliseconds")
        who = "launcher" if self.rank < 0 else f"r{self.rank}"
        return f"{when} {self.node} {who} {self.level.name[0].upper()}"


_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d) (\S+) (?:r(\d+)|launcher) ([DIWE])(?: |$)")
_LETTERS = {level.name[0].upper(): level for level in Level}


def parse(line: str) -> tuple[Stamp, str] | None:
    """The stamp of a line and its text; None where it has none."""
    found = _STAMP.match(line)
    if found is None:
        return None
    when, node, rank, letter = found.groups()
    stamp = Stamp(datetime.fromisoformat(when).timestamp(), node, -1 if rank is None else int(rank), _LETTERS[letter])
    return stamp, line[found.end() :]


# --- levels -------------------------------------------------------------------------------------------------------

_TRACEBACK = "Traceback (most recent call last)"
_LEVELS = (
    # PyTorch's C++ and torchrun's Python: [rank0]:[W1130 04:31:02.123456789 ProcessGroupNCCL.cpp:1538] ...
    (re.compile(r"(?:\[rank\d+\]:)?\s*\[?([DIWEF])\d{3,4} \d\d:\d\d:\d\d\.\d+ "), None),
    (re.compile(r"\bNCCL (?:INFO|TRACE)\b"), Level.info),
    (re.compile(r"\bNCCL WARN\b"), Level.warning),
    (re.compile(r"megaphone: warning: |\bWARNING\b|\w*Warning: "), Level.warning),
    (
        re.compile(
            r"megaphone: error: |\b(?:ERROR|CRITICAL|FATAL)\b|(?:[\w.]+\.)?\w+(?:Error|Exception|Interrupt)(?::|$)"
            r"|(?:srun|slurmstepd): error: |terminate called |Fatal Python error|NVRM: Xid"
        ),
        Level.error,
    ),
)


class Levels:
    """The level of one line after another, by its text: every line of a traceback is as bad as its first."""

    def __init__(self) -> None:
        self._inside = False

    def of(self, text: str) -> Level:
        bare = re.sub(r"^\[rank\d+\]: ?", "", text)
        if _TRACEBACK in bare:
            self._inside = True
            return Level.error
        if self._inside:
            self._inside = bare[:1].isspace() or not bare
            return Level.error
        for pattern, level in _LEVELS:
            if found := pattern.match(bare) or (level is not None and pattern.search(bare)) or None:
                return level if level is not None else _LETTERS.get(found[1], Level.error)
        return Level.info


# --- stamping -----------------------------------------------------------------------------------------------------


class Stamper:
    """Stamps the whole lines of a stream that comes in pieces; what is left of the last one stays for the next."""

    def __init__(self, rank: int, node: str | None = None) -> None:
        self._rank = rank
        self._node = node or socket.gethostname().partition(".")[0]
        self._levels = Levels()
        self._rest = ""

    def __call__(self, text: str) -> str:
        """The lines that `text` completes, stamped with this moment."""
        *lines, self._rest = (self._rest + text).split("\n")
        return "".join(self._line(line.removesuffix("\r")) for line in lines)

    def end(self) -> str:
        """What is left, as a line."""
        rest, self._rest = self._rest, ""
        return self._line(rest) if rest else ""

    def _line(self, text: str) -> str:
        stamp = Stamp(datetime.now().timestamp(), self._node, self._rank, self._levels.of(text))
        return f"{stamp} {text}\n"


class _Stamped:
    """A text stream whose lines are stamped; everything else is the stream's own.

    Lines go out whole, in one write each, so that those of several ranks in one file do not run into each other.
    """

    def __init__(self, stream: TextIO, rank: int) -> None:
        self._stream = stream
        self._stamper = Stamper(rank)
        self._lock = threading.RLock()
        os.register_at_fork(after_in_child=self._renew)

    def write(self, text: str) -> int:
        with self._lock:
            if stamped := self._stamper(text):
                self._stream.write(stamped)
                self._stream.flush()
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._stream.flush()

    def close_line(self) -> None:
        """Let out what has no line break yet."""
        with self._lock:
            self._stream.write(self._stamper.end())
            self._stream.flush()

    def _renew(self) -> None:
        self._lock = threading.RLock()  # another thread may have held it when this process was forked

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def stamp_output() -> None:
    """From here on this rank's standard output and error carry stamps, unless whoever reads them writes those."""
    if os.environ.get(LINES_STAMPED) or isinstance(sys.stdout, _Stamped):
        return
    rank = int(os.environ.get("RANK", "0"))
    sys.stdout = _Stamped(sys.stdout, rank)
    sys.stderr = _Stamped(sys.stderr, rank)


def end_output() -> None:
    """Let out the last line of both streams, as a process does that ends at once."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, _Stamped):
            stream.close_line()
        else:
            stream.flush()
