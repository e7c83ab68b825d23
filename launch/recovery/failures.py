"""`failures.jsonl` of a run folder: every start that failed, whom it is blamed on, and what came of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from launch.recovery.blame import Blame
from runtime import records

FAILURES_FILE = "failures.jsonl"


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
