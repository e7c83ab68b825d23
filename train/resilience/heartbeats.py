"""How far every rank is, in one small file a rank: `heartbeats/rank-00003.json` in the run folder.

The main thread only notes where it is; a thread beside it writes that down, at most once a second, so that neither a
slow file system holds up training nor a hanging rank falls silent.
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

FOLDER = "heartbeats"
ALARM = "alarm"


@dataclass(frozen=True)
class Heartbeat:
    """`moves` counts the rank's places so far, which all ranks come to in the same order, `written` its heartbeats."""

    rank: int
    start: str  # of which start of the run: the same for all its ranks
    step: int  # steps done
    phase: str  # what the rank is doing
    moves: int
    since: float  # seconds in this place
    written: int
    time: float  # seconds since 1970, by this host's clock
    host: str
    pid: int
    waits: bool | None = None  # whether its main thread is inside a collective; told once there is an alarm
    where: str | None = None  # the line of code that its main thread is in; likewise


class Pulse:
    """Where the main thread of a rank is. `move` costs about a microsecond."""

    def __init__(self) -> None:
        self.step = 0
        self.phase = "starting"
        self.moves = 0
        self.trained = False  # whether a step was done since the start
        self._moved = time.monotonic()

    def move(self, phase: str, step: int) -> None:
        """Note what this rank does next, after `step` steps."""
        self.trained = self.trained or step > self.step > 0
        self.phase, self.step = phase, step
        self.moves += 1
        self._moved = time.monotonic()

    @property
    def since(self) -> float:
        """Seconds since the last move."""
        return time.monotonic() - self._moved


def folder_of(run_folder: Path) -> Path:
    return run_folder / FOLDER


def write(folder: Path, beat: Heartbeat) -> None:
    """Replace a rank's file in one step. Not synced: it is of use to processes that run, not after a power cut."""
    path = _file(folder, beat.rank)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(beat)), encoding="utf-8")
    os.replace(partial, path)


def read(run_folder: Path) -> dict[int, Heartbeat]:
    """The last heartbeat of every rank that wrote one, by rank. A file of another version of Megaphone is left out."""
    found = {}
    for path in sorted(folder_of(run_folder).glob("rank-*.json")):
        try:
            beat = Heartbeat(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            continue
        found[beat.rank] = beat
    return found


def written_at(run_folder: Path, rank: int) -> float:
    """When a rank last wrote, seconds since 1970 by the file system's clock, which is one for all hosts; 0: never."""
    try:
        return _file(folder_of(run_folder), rank).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def clear(run_folder: Path) -> None:
    """Remove what an earlier start left, before any rank of this one writes."""
    folder = folder_of(run_folder)
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        path.unlink(missing_ok=True)


def beat_of(pulse: Pulse, rank: int, start: str, written: int) -> Heartbeat:
    """A heartbeat of this process now."""
    return Heartbeat(
        rank=rank,
        start=start,
        step=pulse.step,
        phase=pulse.phase,
        moves=pulse.moves,
        since=pulse.since,
        written=written,
        time=time.time(),
        host=socket.gethostname(),
        pid=os.getpid(),
    )


def _file(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.json"
