"""`failures.jsonl` of a run folder: every start that failed, whom it is blamed on, and what came of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from launch.logs.show import Wanted, merged
from launch.logs.sources import sources
from launch.recovery.blame import Blame, Evidence, blame
from runtime import records
from runtime.log_lines import Level
from train.resilience import heartbeats

FAILURES_FILE = "failures.jsonl"
_WINDOW = 2 * 3600.0  # seconds before the end that are looked at: longer than any time-out of a collective
_STILL = 10.0  # seconds by which a heartbeat has to be older than the newest, to have stopped before it


@dataclass(frozen=True)
class Failure:
    """One start that failed. `start` names it (job and restart, or its number); rank, node, kind and why as in
    `Blame`, None where nothing tells; `next`: what the launcher does about it, in one line."""

    time: float
    start: str
    code: int
    rank: int | None
    node: str | None
    kind: str | None
    broken: bool
    why: str
    next: str

    @property
    def line(self) -> str:
        """`rank 3 on node2: GPU broken (...)`, for the console and for messages."""
        if self.kind is None:
            return "nobody can be named: no log tells why"
        return str(Blame(self.rank, self.node, self.kind, self.broken, self.why))

    def describe(self) -> str:
        """One line for `megaphone status`."""
        when = datetime.fromtimestamp(self.time).astimezone().isoformat(sep=" ", timespec="seconds")
        return f"last failure {when}: {self.line}; {self.next}"


def look(
    run: Path, since: float, ends: Mapping[int, int], ranks: int, *, lost: Sequence[str] = (), now: float | None = None
) -> Blame | None:
    """Who is to blame for a start that began at `since` (seconds since 1970) and has just failed; see `Evidence`."""
    began = max(since, (time.time() if now is None else now) - _WINDOW)
    lines = merged(sources(run), Wanted(level=Level.debug, since=began))
    nodes = {rank: beat.host.partition(".")[0] for rank, beat in heartbeats.read(run).items() if beat.time >= since}
    return blame(Evidence(lines, ends, nodes, lost, _silent(run, since, ends), ranks))


def failure(found: Blame | None, start: str, code: int, then: str) -> Failure:
    if found is None:
        return Failure(time.time(), start, code, None, None, None, False, "", then)
    return Failure(time.time(), start, code, found.rank, found.node, found.kind, found.broken, found.why, then)


def add(run: Path, one: Failure) -> None:
    records.append(run / FAILURES_FILE, asdict(one))


def read(run: Path) -> list[Failure]:
    """Failures so far, oldest first; a line cut short is left out."""
    return [Failure(**record) for record in records.read(run / FAILURES_FILE)]


def blamed(failures: Sequence[Failure]) -> dict[str, int]:
    """How often each node was blamed, most often first."""
    return dict(Counter(one.node for one in failures if one.node is not None).most_common())


def _silent(run: Path, since: float, ends: Mapping[int, int]) -> list[int]:
    """Ranks whose heartbeat stopped before the others', by the clock of the file system, and that did not end by
    themselves."""
    written = {}
    for rank, beat in heartbeats.read(run).items():
        if beat.time >= since:
            written[rank] = heartbeats.written_at(run, rank)
    newest = max(written.values(), default=0.0)
    return sorted(rank for rank, at in written.items() if newest - at > _STILL and rank not in ends)
