"""Which ranks are persistently slower than their peers in their own work, by what all ranks compare anyway.

A slow rank makes every rank slow: the others wait for it, in collectives and in the pipeline. So only a rank's own
work tells it from them: reading data, computing forward and backward, updating; never communication, where the
waiting is. Peers are the ranks of one pipeline stage, which hold the same layers; stages differ by design.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from runtime import records
from train.observe.phases import BACKWARD, DATA, FORWARD, OPTIMIZER

STRAGGLERS_FILE = "stragglers.jsonl"
OWN_WORK = (DATA, FORWARD, BACKWARD, OPTIMIZER)


@dataclass(frozen=True)
class Place:
    """Where a rank is: its host, and its pipeline stage."""

    host: str
    stage: int


@dataclass(frozen=True)
class Change:
    """A rank has become slow, or is so no longer.

    since, until: the first and (so far) the last step of the time in which it was slow; step: when this was found.
    seconds: a step, by which its own work took longer than that of its median peer in the last comparison in which it
    was slow; share: of a step's time; phase: the part of its work that most of it was in.
    """

    rank: int
    host: str
    slow: bool
    since: int
    until: int
    step: int
    seconds: float
    share: float
    phase: str

    @property
    def line(self) -> str:
        """For the console."""
        who = f"rank {self.rank} on {self.host}"
        if not self.slow:
            return f"{who} is no longer slow, as it was from step {self.since} to {self.until}"
        return (
            f"{who} is slow since step {self.since}: its own work takes {self.seconds:.3g} s a step longer than its "
            f"peers' ({100 * self.share:.0f} % of a step), most of it in {self.phase}; every rank waits for it"
        )


@dataclass
class _Spell:
    """What is known of one rank: what it counts as, and how many comparisons in a row have said otherwise."""

    slow: bool = False
    against: int = 0
    since: int = 0
    until: int = 0
    seconds: float = 0.0
    share: float = 0.0
    phase: str = DATA


class Stragglers:
    """Judges one comparison of all ranks after another.

    share: of a step's time by which a rank's own work has to take longer than its peers'; comparisons: in a row until
    a rank counts as slow, and until it no longer does; places: of all ranks, by rank.
    """

    def __init__(self, share: float, comparisons: int, places: Sequence[Place]) -> None:
        self._share = share
        self._comparisons = comparisons
        self._places = places
        self._spells = [_Spell() for _ in places]
        order = sorted(range(len(places)), key=lambda rank: places[rank].stage)
        self._peers = [list(ranks) for _, ranks in groupby(order, key=lambda rank: places[rank].stage)]

    def compare(self, first: int, step: int, rows: Sequence[Mapping[str, float]]) -> list[Change]:
        """Who has become slow, and who is so no longer, in steps `first` to `step`.

        rows: by rank, mean seconds a step of every phase, which add up to a step's.
        """
        whole = statistics.fmean(sum(row.values()) for row in rows)
        changes = []
        for peers in self._peers:
            usual = {phase: statistics.median_low([rows[rank][phase] for rank in peers]) for phase in OWN_WORK}
            own = {rank: sum(rows[rank][phase] for phase in OWN_WORK) for rank in peers}
            middle = statistics.median_low(own.values())
            for rank in peers:
                longer = own[rank] - middle
                looks_slow = longer > self._share * whole
                spell = self._spells[rank]
                if looks_slow:
                    most = max(OWN_WORK, key=lambda phase: rows[rank][phase] - usual[phase])
                    spell.seconds, spell.share, spell.phase = longer, longer / whole, most
                    spell.until = step
                if self._turns(spell, looks_slow, first):
                    changes.append(self._change(rank, step))
        return sorted(changes, key=lambda change: change.rank)

    def _turns(self, spell: _Spell, looks_slow: bool, first: int) -> bool:
        """Whether one more comparison turns what a rank counts as."""
        if looks_slow is spell.slow:
            spell.against = 0
            return False
        if not spell.slow and not spell.against:
            spell.since = first
        spell.against += 1
        if spell.against < self._comparisons:
            return False
        spell.slow, spell.against = looks_slow, 0
        return True

    def _change(self, rank: int, step: int) -> Change:
        spell, host = self._spells[rank], self._places[rank].host
        told = (spell.since, spell.until, step, spell.seconds, spell.share, spell.phase)
        return Change(rank, host, spell.slow, *told)


def write(folder: Path, change: Change) -> None:
    """Append to `stragglers.jsonl` in a run folder. For one rank."""
    records.append(folder / STRAGGLERS_FILE, {"time": time.time(), **asdict(change)})


@dataclass(frozen=True)
class SlowTime:
    """A time in which a rank was slow; until: its last step, None where it was not over when the run stopped."""

    rank: int
    host: str
    since: int
    until: int | None
    seconds: float
    share: float
    phase: str


def slow_times(folder: Path) -> list[SlowTime]:
    """What `stragglers.jsonl` of a run folder tells, in the order in which ranks became slow."""
    found: list[SlowTime] = []
    going_on: dict[int, int] = {}  # by rank, its place in `found`
    for record in records.read(folder / STRAGGLERS_FILE):
        rank = record["rank"]
        if record["slow"]:
            going_on[rank] = len(found)
            found.append(_slow_time(record, None))
        elif rank in going_on:
            found[going_on.pop(rank)] = _slow_time(record, record["until"])
    return found


def _slow_time(record: Mapping[str, Any], until: int | None) -> SlowTime:
    told = ("rank", "host", "since", "seconds", "share", "phase")
    return SlowTime(until=until, **{key: record[key] for key in told})
