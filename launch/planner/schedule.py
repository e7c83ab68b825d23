"""When everything in a pipeline's step happens: the instructions of all ranks (`order`), played against a clock.

A rank works through its own list. A pass takes the seconds of its chunk; a transfer begins once both sides have posted
it, takes `p2p` seconds, and whoever waits for it stands still until then. So it is with NCCL, whose sends end when
they were received, as they are queued on the stream that computes. Transfers between the same two ranks follow each
other in the order of posting, since each pair has one communicator with a stream of its own; where a pipeline has two
ranks alone, Megatron-Core takes one for each direction. That transfers slow computation down beside them is not seen.

Times are whatever numbers the costs are: with whole numbers all of it is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from launch.planner.order import Compute, Instruction, Pass, Post, Transfer, Wait, program

Grid = Sequence[Sequence[float]]


@dataclass(frozen=True)
class PipelineCosts:
    """Seconds of one step of one data-parallel copy.

    forward, backward: of one micro-batch, [pipeline rank][model chunk of the rank]; recomputation is in `backward`.
    p2p: of one transfer between neighbours. tail: what follows the last backward pass: gradient reduction that nothing
    hides, the optimiser, parameter gathering.
    """

    forward: Grid
    backward: Grid
    microbatches: int
    p2p: float = 0
    tail: float = 0

    def __post_init__(self) -> None:
        """Raises ValueError where the two grids differ in shape, a cost is negative or there is nothing to do."""
        shapes = {tuple(map(len, grid)) for grid in (self.forward, self.backward)}
        if len(shapes) != 1 or len(set(*shapes)) != 1 or self.chunks < 1:
            raise ValueError("forward and backward hold one cost for each chunk of each rank, as many on every rank")
        if (
            min(self.p2p, self.tail, *(cost for grid in (self.forward, self.backward) for row in grid for cost in row))
            < 0
        ):
            raise ValueError("a cost is below 0")
        if self.microbatches < 1:
            raise ValueError(f"{self.microbatches} micro-batches are nothing to do")

    @property
    def ranks(self) -> int:
        return len(self.forward)

    @property
    def chunks(self) -> int:
        return len(self.forward[0])


class Interval(NamedTuple):
    """One pass on one rank, in seconds since the step began."""

    kind: Pass
    chunk: int
    microbatch: int
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """A step that was played. passes: of each pipeline rank, in order.

    `seconds` of a step = `ideal` + `imbalance` + `waiting` + tail, where
    ideal: the mean of the ranks' own work, which a pipeline without bubble and with even stages would take;
    imbalance: by how much the busiest rank has more;
    waiting: of that rank, for the pipeline to fill and to drain and for transfers.
    """

    costs: PipelineCosts
    passes: tuple[tuple[Interval, ...], ...]

    @cached_property
    def pipeline(self) -> float:
        """Seconds from the first forward pass to the end of the last backward pass."""
        return max(passes[-1].end for passes in self.passes)

    @cached_property
    def busy(self) -> tuple[float, ...]:
        """Seconds that each rank computes."""
        both = zip(self.costs.forward, self.costs.backward, strict=True)
        return tuple(self.costs.microbatches * (sum(forward) + sum(backward)) for forward, backward in both)

    @property
    def seconds(self) -> float:
        return self.pipeline + self.costs.tail

    @property
    def ideal(self) -> float:
        return sum(self.busy) / self.costs.ranks

    @property
    def imbalance(self) -> float:
        return max(self.busy) - self.ideal

    @property
    def waiting(self) -> float:
        return self.pipeline - max(self.busy)

    @property
    def bubble(self) -> float:
        """Time lost over the ideal: (p - 1) / m for even stages under 1F1B, (p - 1) / (m v) interleaved, where p are
        ranks, v chunks and m micro-batches (Narayanan et al. 2021, 2104.04473, section 2.2)."""
        return self.pipeline / self.ideal - 1

    @property
    def idle(self) -> float:
        """Share of the pipeline's seconds in which a rank does not compute, over all ranks."""
        return 1 - self.ideal / self.pipeline

    def held(self, rank: int) -> int:
        """Most forward passes of a rank whose backward pass is not over yet: whose activations it holds."""
        most = now = 0
        for interval in self.passes[rank]:
            now += 1 if interval.kind is Pass.forward else -1
            most = max(most, now)
        return most


def simulate(costs: PipelineCosts) -> Timeline:
    """Play a step. Raises ValueError for a number of micro-batches that the schedule does not take."""
    ranks = [_Rank(number, costs) for number in range(costs.ranks)]
    wires = _Wires(costs)
    open_ranks = ranks
    while open_ranks:
        went_on = [rank.go_on(wires) for rank in open_ranks]
        if not any(went_on):
            raise RuntimeError("all pipeline ranks wait for each other")
        open_ranks = [rank for rank in open_ranks if not rank.done]
    return Timeline(costs, tuple(tuple(rank.passes) for rank in ranks))


class _Made(NamedTuple):
    """Output of a pass: of the `stage`-th of all chunks in the order of the layers."""

    kind: Pass
    stage: int
    microbatch: int


@dataclass(eq=False)
class _Wire:
    """One transfer, known in part until both sides have posted it."""

    seconds: float
    posted: dict[bool, float] = field(default_factory=dict)  # by whether it is the sender's side
    before: list[_Wire] = field(default_factory=list)  # those that each side's stream does first
    after: list[_Wire] = field(default_factory=list)
    made: _Made | None = None
    end: float | None = None  # not known yet


class _Wires:
    """All transfers of a step, found by both of their sides."""

    def __init__(self, costs: PipelineCosts) -> None:
        self._seconds = costs.p2p
        self._ranks = costs.ranks
        self._wires: dict[tuple[Pass, int, int], _Wire] = {}  # by kind, sender, number
        self._counts: dict[tuple[int, Transfer], int] = {}
        self._last: dict[tuple[int, int, int], list[_Wire]] = {}  # of each of a rank's streams

    def post(self, rank: int, transfers: Sequence[Transfer], now: float, made: dict[Pass, _Made]) -> list[_Wire]:
        """One side's part of transfers that begin together: none of them waits for another."""
        posted: list[_Wire] = []
        streams: dict[tuple[int, int, int], list[_Wire]] = {}
        for transfer in transfers:
            number = self._counts.get((rank, transfer), 0)
            self._counts[rank, transfer] = number + 1
            onwards = 1 if (transfer.kind is Pass.forward) == transfer.send else -1
            peer = (rank + onwards) % self._ranks
            sender = rank if transfer.send else peer
            wire = self._wires.setdefault((transfer.kind, sender, number), _Wire(self._seconds))
            wire.posted[transfer.send] = now
            if transfer.send:
                wire.made = made[transfer.kind]
            stream = (rank, peer, sender if self._ranks == 2 else -1)
            for earlier in self._last.get(stream, ()):
                wire.before.append(earlier)
                earlier.after.append(wire)
            streams.setdefault(stream, []).append(wire)
            posted.append(wire)
        self._last |= streams
        _settle(posted)
        return posted


def _settle(wires: list[_Wire]) -> None:
    """Work out the ends of these, and of those behind them, that can be known now."""
    open_wires = list(wires)
    while open_wires:
        wire = open_wires.pop()
        ends = [earlier.end for earlier in wire.before]
        known = [end for end in ends if end is not None]
        if wire.end is None and len(wire.posted) == 2 and len(known) == len(ends):
            wire.end = max(*wire.posted.values(), *known) + wire.seconds
            open_wires += wire.after


class _Rank:
    """A rank at its place in its list of instructions."""

    def __init__(self, number: int, costs: PipelineCosts) -> None:
        self.number = number
        self.passes: list[Interval] = []
        self._costs = costs
        self._todo: list[Instruction] = program(number, costs.ranks, costs.chunks, costs.microbatches)
        self._at = 0
        self._now: float = 0
        self._posted: list[_Wire] = []
        self._at_hand: set[_Made] = set()  # what came in, or went out
        self._made: dict[Pass, _Made] = {}

    @property
    def done(self) -> bool:
        return self._at == len(self._todo)

    def go_on(self, wires: _Wires) -> bool:
        """Do what can be done now. Returns whether that was anything."""
        begun_at = self._at
        while not self.done:
            match self._todo[self._at]:
                case Compute() as compute:
                    self._compute(compute)
                case Post(transfers):
                    self._posted += wires.post(self.number, transfers, self._now, self._made)
                case Wait(handle):
                    wire = self._posted[handle]
                    if wire.end is None or wire.made is None:
                        break
                    self._now = max(self._now, wire.end)
                    self._at_hand.add(wire.made)
            self._at += 1
        return self._at > begun_at

    def _compute(self, compute: Compute) -> None:
        kind, chunk, microbatch = compute
        stage, last = chunk * self._costs.ranks + self.number, self._costs.ranks * self._costs.chunks - 1
        source = stage - 1 if kind is Pass.forward else stage + 1
        if 0 <= source <= last and _Made(kind, source, microbatch) not in self._at_hand:
            raise RuntimeError(f"rank {self.number} starts {compute} before its input has come")
        seconds = (self._costs.forward if kind is Pass.forward else self._costs.backward)[self.number][chunk]
        self.passes.append(Interval(kind, chunk, microbatch, self._now, self._now + seconds))
        self._now += seconds
        self._made[kind] = _Made(kind, stage, microbatch)
