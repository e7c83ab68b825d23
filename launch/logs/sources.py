"""The log files of a run folder: what local runs, Slurm's tasks, torchrun, the watchdog and launchers write."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from launch.restarts import LAUNCHER_LOG
from launch.slurm import record
from runtime.log_lines import Level

LOGS = "logs"
_RANK = re.compile(r"rank-(\d+)\.log")
_STACKS = re.compile(r"stacks-rank-(\d+)\.txt")
_NODE = re.compile(r"node-\d+\.log")
_JOB = re.compile(r"\d+(?:_\d+)?\.log")


@dataclass(frozen=True)
class Source:
    """One log file.

    rank: whose lines without a stamp are, None where several write here; level: of those lines, None: by their text;
    closed_by_stamp: lines without a stamp were written just before the next stamped one, not just after the last.
    """

    file: Path
    stage: str
    rank: int | None = None
    level: Level | None = None
    closed_by_stamp: bool = False


def sources(run: Path, stage: str = "") -> list[Source]:
    """The log files that a run folder has by now."""
    found = []
    for file in _files(run / LOGS):
        if named := _RANK.fullmatch(file.name):
            found.append(Source(file, stage, int(named[1])))
        elif named := _STACKS.fullmatch(file.name):
            found.append(Source(file, stage, int(named[1]), Level.error))
        elif _NODE.fullmatch(file.name) or file.name == LAUNCHER_LOG:
            found.append(Source(file, stage))
    found += [
        Source(file, stage, closed_by_stamp=True) for file in _files(record.folder_of(run)) if _JOB.fullmatch(file.name)
    ]
    return found


def _files(folder: Path) -> Iterable[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else ()
