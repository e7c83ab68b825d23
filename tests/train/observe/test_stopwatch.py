"""Where time goes: every moment counts once, in the innermost phase."""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.observe.phases import BACKWARD, COMMUNICATION, DATA, ENGINE_PHASES, FORWARD, OPTIMIZER, OTHER
from train.observe.stopwatch import MegatronTimers, Stopwatch


class Ticking:
    """A clock that a test moves on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def go_on(self, seconds: float) -> None:
        self.now += seconds


def test_a_phase_inside_another_stops_its_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, watch = Ticking(monkeypatch), Stopwatch(torch.device("cpu"))
    watch.begin()
    clock.go_on(1)
    with watch.phase(OPTIMIZER):
        clock.go_on(2)
        with watch.phase(COMMUNICATION):
            clock.go_on(4)
        clock.go_on(8)
    clock.go_on(16)
    assert watch.read() == {FORWARD: 0, BACKWARD: 0, OPTIMIZER: 10, COMMUNICATION: 4, OTHER: 17}


@given(st.lists(st.tuples(st.sampled_from([*ENGINE_PHASES, None]), st.integers(0, 100))))
def test_phases_add_up_whatever_their_order(events: list[tuple[str | None, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        clock, watch = Ticking(patch), Stopwatch(torch.device("cpu"))
        watch.begin()
        for phase, seconds in events:
            if phase is None:
                watch.stop()  # also one too many, as where a schedule raised in between
            else:
                watch.start(phase)
            clock.go_on(seconds)
        spent = watch.read()
    assert set(spent) == set(ENGINE_PHASES)
    assert sum(spent.values()) == pytest.approx(sum(seconds for _, seconds in events))


def test_nothing_is_kept_outside_of_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, watch = Ticking(monkeypatch), Stopwatch(torch.device("cpu"))
    with watch.phase(FORWARD):  # as in validation, which no step is
        clock.go_on(3)
    watch.begin()
    clock.go_on(1)
    assert watch.read() == dict.fromkeys(ENGINE_PHASES, 0.0) | {OTHER: 1}
    with watch.phase(FORWARD):
        clock.go_on(3)
    watch.begin()
    assert sum(watch.read().values()) == 0


def test_megatrons_timers_are_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, watch = Ticking(monkeypatch), Stopwatch(torch.device("cpu"))
    timers = MegatronTimers(watch)
    watch.begin()
    timers("forward-backward", log_level=1).start(barrier=True)
    for name, seconds in (("forward-compute", 1), ("forward-send-backward-recv", 2), ("backward-compute", 4)):
        timers(name, log_level=2).start()
        clock.go_on(seconds)
        timers(name).stop()
    clock.go_on(8)
    timers("forward-backward").stop()
    assert watch.read() == {FORWARD: 1, BACKWARD: 4, COMMUNICATION: 2, OPTIMIZER: 0, OTHER: 8}
    assert DATA not in ENGINE_PHASES, "the loop times the loader, no engine does"
