"""The policy by itself: what is a spike, and what is done about each incident."""

from __future__ import annotations

import json
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import OnIncident, ResilienceConfig
from train.resilience.guard import Action, Guard, Kind
from train.resilience.spikes import limit

NAN = float("nan")


def guard(**options: object) -> Guard:
    return Guard(ResilienceConfig(**options), any_rank=bool)  # type: ignore[arg-type]


@given(st.lists(st.floats(0.01, 1e4), min_size=1, max_size=60), st.floats(0.5, 20))
def test_the_limit_is_the_formula(values: list[float], bound: float) -> None:
    median = statistics.median(values)
    spread = 1.4826 * statistics.median(abs(value - median) for value in values)
    assert limit(values, bound) == pytest.approx(median + bound * max(spread, 0.01 * median))


def test_spikes_already_seen_do_not_hide_the_next_one() -> None:
    calm = [1.0 + 0.01 * (number % 5) for number in range(40)]
    assert limit([*calm, 50.0, 60.0], 8) < 2


def test_nothing_is_a_spike_during_warm_up_and_falling_never_is() -> None:
    judge = guard(on_spike=OnIncident.skip, window=8, warmup=4)
    for position, loss in enumerate((5.0, 50.0, 4.0, 3.0)):
        assert judge.accept(loss, 1.0)
        judge.learn(position, loss, 1.0)
    assert judge.accept(0.001, 0.001)
    assert not judge.accept(4.0, 9.0) and judge.incident is Kind.spike


def test_any_rank_decides_for_all() -> None:
    judge = Guard(ResilienceConfig(), any_rank=lambda mine: True)
    assert not judge.accept(1.0, 1.0) and judge.incident is Kind.nonfinite


@pytest.mark.parametrize(("loss", "norm"), [(NAN, 1.0), (1.0, NAN), (float("inf"), 1.0), (1.0, float("inf"))])
def test_rewind_tries_again_and_then_leaves_the_window_out(loss: float, norm: float) -> None:
    judge = guard(on_nonfinite=OnIncident.rewind, leave_out=3)
    assert not judge.accept(loss, norm)
    assert judge.decide(10) is Action.redo
    judge.restore({})  # what a rewind does
    assert not judge.accept(loss, norm)
    assert judge.decide(10) is Action.leave_out
    judge.restore({})
    assert [position for position in range(20) if judge.leaves_out(position)] == [8, 9, 10]
    again = guard(on_nonfinite=OnIncident.rewind, leave_out=3)
    again.restore(json.loads(json.dumps(judge.state())))
    assert again.state() == judge.state() and again.leaves_out(9)


def test_a_step_that_went_well_the_second_time_may_be_tried_again_another_time() -> None:
    judge = guard(on_nonfinite=OnIncident.rewind)
    for _ in range(2):
        judge.accept(NAN, 1.0)
        assert judge.decide(3) is Action.redo
        assert judge.accept(1.0, 1.0)
        judge.learn(3, 1.0, 1.0)


def test_too_many_incidents_within_the_window_stop_the_run_and_old_ones_do_not_count() -> None:
    judge = guard(on_nonfinite=OnIncident.skip, most_incidents=2, window=10, warmup=1)
    judge.accept(NAN, 1.0)
    assert [judge.decide(position) for position in (0, 5, 11, 16, 17)] == [Action.skip] * 4 + [Action.stop]
    assert "most_incidents=2" in judge.why_stopped
