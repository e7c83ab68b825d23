"""Where a step's time goes: a stopwatch of nested phases that never makes the host wait for the device.

On the CPU a mark is a reading of the clock. On a GPU it is a CUDA event on the current stream, so that a phase counts
the device's time for what was queued in it, gaps included. Events are read where the step's results are on the host
anyway: by then all of them have happened.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch

from train.observe.phases import BACKWARD, COMMUNICATION, ENGINE_PHASES, FORWARD, OTHER


class Stopwatch:
    """Splits the time between `begin` and `read` over phases. A phase begun inside another one stops that one's clock,
    so that every moment counts once; time in no phase is OTHER. Outside of `begin` and `read` phases cost nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._clock: _HostClock | _DeviceClock = _DeviceClock() if device.type == "cuda" else _HostClock()
        self._open: list[str] = []
        self._marks: list[tuple[str, Any]] = []  # a phase, and the mark from which on it runs

    @property
    def running(self) -> bool:
        """Whether this is between `begin` and `read`."""
        return bool(self._open)

    def begin(self) -> None:
        self._open = [OTHER]
        self._marks = [(OTHER, self._clock.mark())]

    def start(self, phase: str) -> None:
        if self._open:
            self._open.append(phase)
            self._marks.append((phase, self._clock.mark()))

    def stop(self) -> None:
        """End the phase started last, and go on with the one around it."""
        if len(self._open) > 1:
            self._open.pop()
            self._marks.append((self._open[-1], self._clock.mark()))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.start(name)
        try:
            yield
        finally:
            self.stop()

    def read(self) -> dict[str, float]:
        """Seconds of every phase of ENGINE_PHASES since `begin`; ends the measurement. Nothing that was queued before
        may still be running on the device."""
        seconds = dict.fromkeys(ENGINE_PHASES, 0.0)
        marks = [*self._marks, (OTHER, self._clock.mark())]
        self._clock.settle(marks[-1][1])
        for (phase, since), (_, until) in pairwise(marks):
            seconds[phase] += self._clock.between(since, until)
        self._open, self._marks = [], []
        self._clock.recycle()
        return seconds


class _HostClock:
    def mark(self) -> float:
        return time.perf_counter()

    def settle(self, last: float) -> None:
        pass

    def between(self, since: float, until: float) -> float:
        return until - since

    def recycle(self) -> None:
        pass


class _DeviceClock:
    """Marks are events on the current stream, taken from a pool that grows to what one step needs."""

    def __init__(self) -> None:
        self._pool: list[torch.cuda.Event] = []
        self._used = 0

    def mark(self) -> torch.cuda.Event:
        if self._used == len(self._pool):
            self._pool.append(torch.cuda.Event(enable_timing=True))
        event = self._pool[self._used]
        self._used += 1
        event.record()
        return event

    def settle(self, last: torch.cuda.Event) -> None:
        last.synchronize()

    def between(self, since: torch.cuda.Event, until: torch.cuda.Event) -> float:
        return since.elapsed_time(until) / 1000  # it counts milliseconds

    def recycle(self) -> None:
        self._used = 0


# --- Megatron-Core ------------------------------------------------------------------------------------------------

# Names that Megatron-Core 0.16.1 gives its timers, in the schedules, in finalising gradients and in its optimisers.
# Those not named here ("forward-backward" around a whole schedule, the optimiser's inner parts) say nothing new.
_PHASE_OF_TIMER = {
    "forward-compute": FORWARD,
    "backward-compute": BACKWARD,
    "all-grads-sync": COMMUNICATION,
    "conditional-embedder-grads-all-reduce": COMMUNICATION,
    "non-tensor-parallel-grads-all-reduce": COMMUNICATION,
    "embedding-grads-all-reduce": COMMUNICATION,
    "params-all-gather": COMMUNICATION,
}


class MegatronTimers:
    """Takes the place of `megatron.core.timers.Timers` in a config's `timers`.

    Megatron's own timers synchronise host and device at every start and stop, and put up barriers; these only mark a
    stopwatch's phases. Sends and receives between pipeline stages count as communication with all their waiting, and
    so do collectives inside a layer (`train.observe.collectives`).
    """

    def __init__(self, stopwatch: Stopwatch) -> None:
        self._stopwatch = stopwatch
        self._timers: dict[str, _Timer] = {}

    def __call__(self, name: str, log_level: int | None = None) -> _Timer:
        if name not in self._timers:
            between_stages = "send" in name or "recv" in name
            phase = COMMUNICATION if between_stages else _PHASE_OF_TIMER.get(name)
            self._timers[name] = _Timer(self._stopwatch, phase)
        return self._timers[name]


class _Timer:
    def __init__(self, stopwatch: Stopwatch, phase: str | None) -> None:
        self._stopwatch = stopwatch
        self._phase = phase

    def start(self, barrier: bool = False) -> None:
        if self._phase is not None:
            self._stopwatch.start(self._phase)

    def stop(self, barrier: bool = False) -> None:
        if self._phase is not None:
            self._stopwatch.stop()
