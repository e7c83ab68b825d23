"""One rank of a preflight: it comes, measures its node, measures the network with the others, and hears the verdict.

Rank 0 waits for every step of every rank until a deadline; who is late then is named, with what it was at. So a node
that hangs is named by the store it does not write to, not by a collective that does not end.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from configs.schema import Config
from launch.preflight import judging, measuring, record, space
from launch.preflight.beside import Beside
from launch.preflight.measuring import Layout, Shared
from launch.preflight.meeting import (
    Called,
    Gone,
    Meeting,
    Place,
    Unreachable,
    job_of,
    names_of_late,
    nodes_of,
    watch,
)
from launch.preflight.node import Finding, Report, together
from launch.preflight.record import Outcome
from runtime.exits import FAILED, SICK

# What a rank says, by its number: that it is there, what it is at, what it has measured.
_HERE, _AT, _NODE, _NETWORK, _HEARD = "here", "at", "node", "network", "heard"
# What rank 0 says: the ranks of each node, once all are there; whether the network is measured; the exit code.
_LAYOUT, _GO, _VERDICT = "layout", "go", "verdict"
_COMING, _MEASURING = 0.5, 0.75  # of the time: until all have come, until all nodes are measured
_LATER = 1.25  # until the others give rank 0 up, which may have started after them
_LEAVING = 5.0  # seconds for all to hear the verdict


def preflight(
    config: Config,
    environment: Mapping[str, str],
    now: Callable[[], float] = time.time,
    give_up: Callable[[int], None] = os._exit,
) -> int:
    """Take part as the rank that the environment says; returns the exit code, the same on all ranks.

    Rank 0 prints the table and writes the record into the run folder. now: this node's clock. give_up: ends the process
    with a code, where rank 0 has stopped and this rank cannot return.
    """
    place = Place.of(environment)
    rank = _Rank(config, environment, place, now)
    if place.rank == 0:
        return rank.go()
    # A rank that waits for a store which has stopped is beyond Python's reach.
    done = watch(config.cluster.preflight.seconds * _LATER, lambda: give_up(rank.rank_0_is_silent()))
    try:
        return rank.go()
    finally:
        done.set()


class _Rank:
    def __init__(self, config: Config, environment: Mapping[str, str], place: Place, now: Callable[[], float]) -> None:
        self.config = config
        self.settings = config.cluster.preflight
        self.environment = environment
        self.place = place
        self.now = now
        self.folder = Path(config.run.folder)
        self.start = time.monotonic()
        self.began = time.time()
        self.where_ranks_meet = environment["MASTER_ADDR"]
        self.at = "coming"

    def until(self, share: float) -> float:
        return self.start + share * self.settings.seconds

    def go(self) -> int:
        try:
            self.meeting = Meeting(self.place, self.environment, self.settings.seconds * _COMING)
        except Unreachable:
            return self.rank_0_is_silent()
        if self.place.rank == 0:
            return self._lead()
        try:
            self._come()
            first = self.meeting.wait(_HERE, [0], self.until(_COMING))
            if first:
                self.where_ranks_meet = first[0]["node"]
            return self._follow()
        except Gone:  # for whatever reason, which it has said itself: no node is named for that
            print(f"megaphone: error: rank 0 ({self.where_ranks_meet}) has ended amid the preflight", flush=True)
            return FAILED

    def _come(self) -> None:
        self.meeting.say(_HERE, Called(self.place.node, self.place.local_rank).plain())

    def rank_0_is_silent(self) -> int:
        """The verdict of a rank that rank 0 has not answered; each that finds so writes the same."""
        said = f"rank 0, where ranks meet, has not answered rank {self.place.rank} ({self.place.node})"
        outcome = Outcome(findings=[Finding("answer", (self.where_ranks_meet,), said)], start=job_of(self.environment))
        outcome.seconds = time.monotonic() - self.start
        self._write(outcome)
        print(f"megaphone: error: {outcome.reason()}", flush=True)
        return SICK

    def _write(self, outcome: Outcome) -> None:
        """The first verdict of this start stands: a rank that was stopped and goes on knows less than those it kept
        waiting."""
        try:
            if not record.is_of(outcome.start, self.folder, self.began):
                record.write(outcome, self.folder)
        except OSError as error:
            print(f"megaphone: {self.folder / record.FILE}: {error.strerror or error}", flush=True)

    # --- rank 0 -------------------------------------------------------------------------------------------------

    def _lead(self) -> int:
        self._come()
        outcome = self._look()
        outcome.seconds, outcome.start = time.monotonic() - self.start, job_of(self.environment)
        self._write(outcome)
        self.meeting.say(_VERDICT, outcome.code)
        print("\n".join(record.table(outcome, self.settings)), flush=True)
        others = set(range(1, self.place.world)) - self.silent
        self.meeting.wait(_HEARD, others, time.monotonic() + _LEAVING)  # the store goes with this process
        return outcome.code

    def _look(self) -> Outcome:
        self.silent: set[int] = set()
        everyone = range(self.place.world)
        called = {
            rank: Called(**word) for rank, word in self.meeting.wait(_HERE, everyone, self.until(_COMING)).items()
        }
        if late := self._late(everyone, called, called):
            self.meeting.say(_LAYOUT, {})
            return Outcome(findings=late)
        layout = _layout(called)
        self.meeting.say(_LAYOUT, layout)
        self.meeting.say(_NODE, self._measured(layout))
        measured = self.meeting.wait(_NODE, everyone, self.until(_MEASURING))
        reports = {rank: Report(**word["report"]) for rank, word in measured.items()}
        rooms = {called[rank].node: space.Room(**word["room"]) for rank, word in measured.items() if word["room"]}
        outcome = Outcome(findings=self._late(everyone, reports, called))
        go = not outcome.findings and self.place.world > 1
        self.meeting.say(_GO, go)
        if go:
            self._meet(layout, called, reports, outcome)
        outcome.findings += judging.judge_room(rooms)
        outcome.nodes = {
            name: together(reports[rank] for rank in ranks if rank in reports) for name, ranks in layout.items()
        }
        answered = {name: report for name, report in outcome.nodes.items() if report.figures}
        outcome.findings += judging.judge(self.settings, answered)
        outcome.notes += _notes(answered)
        outcome.notes += judging.judge_pairs(self.settings.slow_share, answered, set(outcome.sick))
        return outcome

    def _meet(
        self, layout: dict[str, list[int]], called: Mapping[int, Called], reports: dict[int, Report], outcome: Outcome
    ) -> None:
        """Measure the network with all ranks, into their reports and the outcome."""
        self.meeting.say(_NETWORK, self._among(layout))
        words = self.meeting.wait(_NETWORK, range(self.place.world), self.until(1.0) + 1)
        outcome.findings += self._stuck(words, called)
        for rank, word in words.items():
            reports[rank].take(Report(**word["report"]))
            outcome.figures |= word["figures"]
        offsets = words.get(0, {}).get("offsets", {})
        outcome.findings += judging.judge_clocks(self.settings.clock_skew, offsets)
        outcome.figures |= {f"clock of {name}, s": offset for name, offset in offsets.items() if offset}

    def _late(self, ranks: range, answered: Mapping[int, Any], called: Mapping[int, Called]) -> list[Finding]:
        late = [rank for rank in ranks if rank not in answered]
        self.silent |= set(late)
        found = []
        for name, mine in names_of_late(late, called, self.place.world, nodes_of(self.environment)).items():
            at = self.meeting.heard(_AT, mine[0])
            doing = f"; it was at: {at}" if at else "; it never came"
            said = f"{_ranks(mine)} has not answered in {time.monotonic() - self.start:.0f} s{doing}"
            found.append(Finding("answer", (name,) if name else (), said))
        return found

    def _stuck(self, grouped: Mapping[int, Any], called: Mapping[int, Called]) -> list[Finding]:
        """Nodes of ranks that said nothing at all; else what those that did not get through were at."""
        if silent := self._late(range(self.place.world), grouped, called):
            return silent
        stuck = {rank: word["error"] for rank, word in grouped.items() if word["error"]}
        if not stuck:
            return []
        rank, error = next(iter(stuck.items()))
        said = f"{len(stuck)} of {self.place.world} ranks did not get through, such as rank {rank} "
        return [Finding("network", (), f"{said}({called[rank].node}): {error}")]

    # --- every rank ---------------------------------------------------------------------------------------------

    def _follow(self) -> int:
        end = self.until(_LATER)
        layout = self.meeting.wait(_LAYOUT, [0], end).get(0)
        if layout:
            self.meeting.say(_NODE, self._measured(layout))
            if self.meeting.wait(_GO, [0], end).get(0):
                self.meeting.say(_NETWORK, self._among(layout))
        verdict = self.meeting.wait(_VERDICT, [0], end).get(0)
        if verdict is None:
            return self.rank_0_is_silent()
        self.meeting.say(_HEARD, True)
        return int(verdict)

    def _doing(self, what: str) -> None:
        self.at = what
        self.meeting.say(_AT, what)

    def _measured(self, layout: Layout) -> dict[str, Any]:
        report, room = measuring.alone(self.config, self.place, layout, self._doing)
        self._doing("waiting for the other nodes")
        return {"report": asdict(report), "room": None if room is None else asdict(room)}

    def _among(self, layout: Layout) -> dict[str, Any]:
        """Figures of the network; where a collective does not end, what it was. It runs beside, since it may not."""
        asked = (self.settings, self.place, layout, self.meeting.store, self._doing, self.now)
        found, error = Shared(), None
        try:
            found = Beside(lambda: measuring.together(*asked)).result(max(1.0, self.until(1.0) - time.monotonic()))
        except TimeoutError:
            error = f"no end of {self.at}"
        except RuntimeError as problem:
            error = f"{self.at}: {' '.join(str(problem).split())[:300]}"
        return {**asdict(found), "error": error}


def _layout(called: Mapping[int, Called]) -> dict[str, list[int]]:
    """The ranks of each node, in order."""
    found: dict[str, list[int]] = {}
    for rank in sorted(called):
        found.setdefault(called[rank].node, []).append(rank)
    return found


def _notes(nodes: Mapping[str, Report]) -> list[str]:
    """Notes, those of several nodes once."""
    found: dict[str, list[str]] = {}
    for name, report in nodes.items():
        for line in report.notes:
            found.setdefault(line, []).append(name)
    return [f"{names[0] if len(names) == 1 else f'{len(names)} nodes'}: {line}" for line, names in found.items()]


def _ranks(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
    return f"rank {shown}" if len(numbers) == 1 else f"ranks {shown}: the first"
