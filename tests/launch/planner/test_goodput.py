"""The interval and goodput of saves: against chance, against a search, and in the limits."""

from __future__ import annotations

from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.planner.goodput import DAY, Reliability, best_interval, goodput, played_goodput


@pytest.mark.parametrize(
    "job",
    [
        Reliability(between=6 * 3600, stall=5, write=100, restart=600),
        Reliability(between=3600, stall=60, write=60, restart=300),
        Reliability(between=1200, stall=10, write=120, restart=300),
    ],
)
def test_failures_drawn_one_by_one_give_the_same(job: Reliability) -> None:
    """Over about 20,000 failures, whose count alone varies by 0.7 %."""
    interval = best_interval(job)
    stretches = int(20_000 * job.between / interval)
    assert played_goodput(job, interval, stretches, seed=1) == pytest.approx(goodput(job, interval), rel=0.012)


@given(st.floats(600, 1e6), st.floats(0.1, 120), st.floats(0, 600), st.floats(0, 1800))
def test_no_other_interval_is_much_better(between: float, stall: float, write: float, restart: float) -> None:
    job = Reliability(between, stall, max(stall, write), restart)
    chosen = best_interval(job)
    best = max(goodput(job, max(job.write, chosen * factor)) for factor in (0.5, 0.8, 0.9, 1.0, 1.1, 1.25, 2.0))
    assert goodput(job, chosen) >= best * 0.995


def test_for_short_saves_it_is_youngs() -> None:
    job = Reliability(between=1e6, stall=1, write=1, restart=0)
    assert best_interval(job) == pytest.approx(sqrt(2 * 1e6), rel=0.002)


@given(st.floats(1e3, 1e6), st.floats(1, 60), st.floats(1, 600))
def test_more_failures_and_dearer_saves_leave_less(between: float, stall: float, restart: float) -> None:
    def left(job: Reliability) -> float:
        return goodput(job, best_interval(job))

    job = Reliability(between, stall, stall, restart)
    assert 0 < left(job) < 1
    assert left(Reliability(between / 2, stall, stall, restart)) < left(job)
    assert left(Reliability(between, stall * 2, stall * 2, restart)) < left(job)
    assert left(Reliability(between, stall, stall, restart * 2)) < left(job)


def test_the_rate_of_a_job_is_that_of_all_its_gpus() -> None:
    job = Reliability.of(1000, 1.0, stall=1, write=1, restart=1)
    assert job.between == DAY
    assert Reliability.of(4000, 0.5, stall=1, write=1, restart=1).between == DAY / 2
