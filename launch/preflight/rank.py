"""One rank of a preflight: it comes, measures its node, measures the network with the others, and hears the verdict.

Rank 0 waits for every step of every rank until a deadline; who is late then is named, with what it was at. So a node
that hangs is named by the store it does not write to, not by a collective that does not end.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.schema import Config
from launch.preflight import clock, compute, corpus, gpus, host, judging, network, record, space, storage
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

if TYPE_CHECKING:
    import torch

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

    def _measured(self, layout: Mapping[str, list[int]]) -> dict[str, Any]:
        """This rank's device, and by the first rank of a node all of the node."""
        first = layout[self.place.node][0] == self.place.rank
        health = _Beside(gpus.health) if first else None  # clocks and slowdowns are read while the GPUs work
        self._doing("matrix products")
        report = compute.speed(_device(self.place))
        room = None
        if health is not None:
            for what, check in (
                ("memory", host.memory),
                ("/dev/shm", host.shared_memory),
                ("versions", host.versions),
            ):
                self._doing(what)
                report.take(check())
            self._doing("corpus")
            seen = corpus.look(self.config)
            report.take(seen.report)
            self._doing(f"run folder {self.folder}")
            found, room = self._run_folder(seen.rows)
            report.take(found)
            self._doing("nvidia-smi")
            report.take(health.result())
        self._doing("waiting for the other nodes")
        return {"report": asdict(report), "room": None if room is None else asdict(room)}

    def _run_folder(self, rows: int | None) -> tuple[Report, space.Room | None]:
        if self.place.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + _LEAVING
        while not self.folder.is_dir() and time.monotonic() < deadline:
            time.sleep(_LEAVING / 50)  # rank 0 makes it, and a network file system is not quick to show it
        if not self.folder.is_dir():
            said = f"run.folder={self.folder} is not there, and is on rank 0's node: is it shared?"
            return Report(lacks=[said]), None
        report = storage.speed(self.folder, self.settings.storage_mb, self.place.node)
        room = None if rows is None else space.room(self.config, rows, self.folder)
        if room is None:
            report.notes.append(
                "space for checkpoints is not judged: the corpus or the backbone does not tell their size"
            )
        return report, room

    def _among(self, layout: Mapping[str, list[int]]) -> dict[str, Any]:
        """Figures of the network; where a collective does not end, what it was. It runs beside, since it may not."""
        said = _Beside(lambda: self._network(layout))
        try:
            return said.result(max(1.0, self.until(1.0) - time.monotonic()))
        except TimeoutError:
            return _word(error=f"no end of {self.at}")
        except RuntimeError as error:
            return _word(error=f"{self.at}: {' '.join(str(error).split())[:300]}")

    def _network(self, layout: Mapping[str, list[int]]) -> dict[str, Any]:
        from datetime import timedelta

        import torch.distributed as dist

        device, most = _device(self.place), self.settings.network_mb
        self._doing("joining the process group")
        left = max(1.0, self.until(1.0) - time.monotonic())
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=self.meeting.store,
            rank=self.place.rank,
            world_size=self.place.world,
            timeout=timedelta(seconds=left),
        )
        report, figures, offsets = Report(), {}, {}
        self._doing("an all-reduce over all ranks")
        speed = network.reduced(dist.group.WORLD, self.place.world, device, most)
        if self.place.rank == 0:
            figures["all-reduce over all ranks, GB/s"] = speed
        self._doing("an all-reduce within the node")
        report.take(network.within(layout[self.place.node], device, most))
        if len(layout) > 1:
            leaders = {name: ranks[0] for name, ranks in layout.items()}
            if self.place.rank in leaders.values():
                self._doing("comparing clocks")
                group = dist.new_group(list(leaders.values()), backend="gloo", use_local_synchronization=True)
                offsets = clock.offsets(leaders, group, self.place.rank, self.now)
            node_of = {rank: name for name, ranks in layout.items() for rank in ranks}
            speeds = network.partners(
                list(layout.values()),
                self.place.rank,
                self.settings.pair_rounds,
                device,
                most,
                lambda peer: self._doing(f"sending to and receiving from {node_of[peer]}"),
            )
            report.peers = {node_of[peer]: value for peer, value in speeds.items()}
            if speeds:
                report.figures["network"] = max(speeds.values())
        self._doing("leaving")
        dist.destroy_process_group()
        return _word(report, figures, offsets)


class _Beside:
    """Work in a thread of its own, which nobody has to wait for."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._result: Any = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._work()
        except Exception as error:
            self._error = error

    def result(self, seconds: float | None = None) -> Any:
        """What the work returned, or its exception; TimeoutError where it takes longer."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            raise TimeoutError
        if self._error is not None:
            raise self._error
        return self._result


def _word(
    report: Report | None = None,
    figures: dict[str, float] | None = None,
    offsets: dict[str, float] | None = None,
    error: str | None = None,
) -> dict[str, Any]:
    return {"report": asdict(report or Report()), "figures": figures or {}, "offsets": offsets or {}, "error": error}


def _layout(called: Mapping[int, Called]) -> dict[str, list[int]]:
    """The ranks of each node, in order."""
    found: dict[str, list[int]] = {}
    for rank in sorted(called):
        found.setdefault(called[rank].node, []).append(rank)
    return found


def _device(place: Place) -> torch.device:
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", place.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


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
