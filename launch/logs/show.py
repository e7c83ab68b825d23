"""All files of a run merged in the order of time, filtered, and followed as they grow."""

from __future__ import annotations

import contextlib
import heapq
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from launch.logs.reading import Line, Reader
from launch.logs.sources import Source, sources
from launch.status import stages_of
from runtime.exits import BadInput
from runtime.log_lines import Level

POLL = 0.5  # seconds between looks at files that grow
_COLOURS = {Level.error: "\x1b[31m", Level.warning: "\x1b[33m"}
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Wanted:
    """Which lines are shown; None or nothing: all. since: seconds since 1970."""

    ranks: frozenset[int] | None = None
    nodes: frozenset[str] | None = None
    level: Level = Level.debug
    since: float | None = None

    def __contains__(self, line: Line) -> bool:
        return (
            line.level >= self.level
            and (self.ranks is None or line.rank in self.ranks)
            and (self.nodes is None or line.node in self.nodes)
        )


def merged(files: Sequence[Source], wanted: Wanted) -> Iterator[Line]:
    """Lines of all files by time, read as they are asked for; one file's keep their order."""
    _allow_files(len(files))
    lines = heapq.merge(*(Reader(one, wanted.since).lines(torn=True) for one in files), key=lambda line: line.time)
    return (line for line in lines if line in wanted)


def followed(
    find: Callable[[], Sequence[Source]], wanted: Wanted, pause: Callable[[float], None] = time.sleep
) -> Iterator[Line]:
    """`merged`, and then for ever what is written on, in files that are there or come; whole lines only."""
    readers: dict[Path, Reader] = {}
    while True:
        for one in find():
            readers.setdefault(one.file, Reader(one, wanted.since))
        _allow_files(len(readers))
        new = [reader.lines(torn=False) for reader in readers.values()]
        yield from (line for line in heapq.merge(*new, key=lambda line: line.time) if line in wanted)
        pause(POLL)


def show(folder: Path, wanted: Wanted, stage: str | None = None, *, follow: bool = False) -> None:
    """Print the log of a run, or of one stage of it. Raises BadInput where there is no such stage, or nothing to show
    and `follow` is off."""
    runs = {run.name: run for run in stages_of(folder)}
    if stage is not None:
        if stage not in runs:
            raise BadInput(f"{folder} has no stage {stage}; it has {', '.join(runs)}")
        runs = {stage: runs[stage]}

    def find() -> list[Source]:
        return [one for name, run in runs.items() for one in sources(run, name)]

    if not follow and not find():
        raise BadInput(f"{folder} has no logs yet")
    coloured = sys.stdout.isatty()
    for line in followed(find, wanted) if follow else merged(find(), wanted):
        said = f"{line.stage}: {line}" if len(runs) > 1 else str(line)
        colour = _COLOURS.get(line.level, "") if coloured else ""
        print(f"{colour}{said}\x1b[0m" if colour else said, flush=follow)


def moment(word: str, now: float | None = None) -> float:
    """Seconds since 1970 of `90s`, `10m`, `2h` or `3d` ago, or of a date and time as ISO 8601 writes it, local where it
    names no zone."""
    if ago := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", word):
        return (time.time() if now is None else now) - float(ago[1]) * _UNITS[ago[2]]
    try:
        return datetime.fromisoformat(word).timestamp()
    except ValueError as error:
        raise BadInput(f"--since {word}: 90s, 10m, 2h, 3d, or a time such as 2026-11-30T04:31") from error


def ranks_of(words: Sequence[str]) -> frozenset[int]:
    """Ranks of words such as 3 and 8-15."""
    found: set[int] = set()
    for word in words:
        named = re.fullmatch(r"(\d+)(?:-(\d+))?", word)
        if named is None or int(named[2] or named[1]) < int(named[1]):
            raise BadInput(f"--rank {word}: a number, or a range such as 8-15")
        found.update(range(int(named[1]), int(named[2] or named[1]) + 1))
    return frozenset(found)


def _allow_files(count: int) -> None:
    """A thousand ranks are a thousand open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if count + 64 > soft:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(count + 64, hard), hard))
