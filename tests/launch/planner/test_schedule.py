"""The played step: closed formulas where there are some, what must hold of any costs where there are none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.planner.order import Pass, in_flight
from launch.planner.schedule import PipelineCosts, Timeline, simulate

EVEN = [
    (ranks, chunks, microbatches)
    for ranks in (1, 2, 3, 4, 8)
    for chunks in (1, 2, 3, 6)
    for microbatches in (1, 2, 3, 4, 8, 12, 16, 24)
    if chunks == 1 or (ranks > 1 and microbatches % ranks == 0)
]


@pytest.mark.parametrize(("forward", "backward"), [(1, 2), (2, 2), (3, 2)])
def test_the_bubble_of_even_stages_is_the_published_one(forward: int, backward: int) -> None:
    """(p - 1) / m under 1F1B, (p - 1) / (m v) interleaved: 2104.04473, section 2.2. To the last digit."""
    for ranks, chunks, microbatches in EVEN:
        costs = PipelineCosts([[forward] * chunks] * ranks, [[backward] * chunks] * ranks, microbatches)
        timeline = simulate(costs)
        ideal = microbatches * chunks * (forward + backward)
        assert Fraction(timeline.pipeline) / ideal - 1 == Fraction(ranks - 1, microbatches * chunks)
        assert timeline.ideal == ideal and timeline.imbalance == 0
        assert timeline.bubble == pytest.approx((ranks - 1) / (microbatches * chunks), abs=1e-12)


@pytest.mark.parametrize(("ranks", "chunks", "microbatches"), EVEN)
def test_activations_in_flight_are_those_that_memory_is_planned_for(ranks: int, chunks: int, microbatches: int) -> None:
    timeline = simulate(PipelineCosts([[1] * chunks] * ranks, [[2] * chunks] * ranks, microbatches))
    for rank in range(ranks):
        assert timeline.held(rank) == in_flight(rank, ranks, chunks, microbatches)
    if chunks == 1:
        assert [timeline.held(rank) for rank in range(ranks)] == [min(ranks - n, microbatches) for n in range(ranks)]


def test_a_step_worked_out_by_hand() -> None:
    """Two unlike stages, a transfer of 1, 1F1B. Rank 0: forward 2, backward 3; rank 1: forward 4, backward 5.

    Rank 1 gets its first input at 3, is done with it at 7 and, as the gradient goes back, takes the second input, which
    waited on rank 0 since 5: both go over from 12 to 13.
    """
    timeline = simulate(PipelineCosts([[2], [4]], [[3], [5]], microbatches=2, p2p=1, tail=10))
    assert [(kept.kind.value, kept.microbatch, kept.start, kept.end) for kept in timeline.passes[0]] == [
        ("F", 0, 0, 2),
        ("F", 1, 3, 5),  # the first send is waited for
        ("B", 0, 13, 16),
        ("B", 1, 23, 26),
    ]
    assert [(kept.kind.value, kept.microbatch, kept.start, kept.end) for kept in timeline.passes[1]] == [
        ("F", 0, 3, 7),
        ("B", 0, 7, 12),
        ("F", 1, 13, 17),
        ("B", 1, 17, 22),
    ]
    assert list(timeline.busy) == [10, 18]
    assert timeline.pipeline == 26 and timeline.seconds == 36
    assert (timeline.ideal, timeline.imbalance, timeline.waiting) == (14, 4, 8)
    assert timeline.idle == pytest.approx(1 - 28 / 52) and timeline.bubble == pytest.approx(26 / 14 - 1)


def test_interleaving_hides_transfers_that_the_plain_pipeline_waits_for() -> None:
    """Of so short a chunk two transfers as well, so that what is not hidden would cost more, not less."""
    plain = PipelineCosts([[8]] * 4, [[16]] * 4, 32, p2p=1)
    chunked = PipelineCosts([[4] * 2] * 4, [[8] * 2] * 4, 32, p2p=1)
    shown = {
        costs.chunks: simulate(costs).pipeline - simulate(replace(costs, p2p=0)).pipeline for costs in (plain, chunked)
    }
    assert shown[1] >= 2 * 31  # at least two a micro-batch
    assert shown[2] < shown[1] / 2


@st.composite
def unlike(draw: st.DrawFn) -> PipelineCosts:
    ranks, chunks = draw(st.integers(2, 5)), draw(st.integers(1, 4))
    rounds = draw(st.integers(1, 4))
    microbatches = rounds * ranks if chunks > 1 else draw(st.integers(1, 12))
    seconds = st.integers(0, 20)
    grid = st.lists(st.lists(seconds, min_size=chunks, max_size=chunks), min_size=ranks, max_size=ranks)
    return PipelineCosts(draw(grid), draw(grid), microbatches, draw(st.integers(0, 5)), draw(st.integers(0, 5)))


@given(unlike())
@settings(max_examples=150, deadline=None)
def test_no_pass_comes_before_what_it_needs(costs: PipelineCosts) -> None:
    timeline = simulate(costs)
    ends = {key: end for key, _, end in _by_stage(timeline)}
    last = costs.ranks * costs.chunks - 1
    assert len(ends) == 2 * costs.microbatches * (last + 1)
    for (kind, stage, microbatch), start, _ in _by_stage(timeline):
        if kind is Pass.forward and stage > 0:
            assert start >= ends[kind, stage - 1, microbatch] + costs.p2p
        elif kind is Pass.backward:
            assert start >= ends[Pass.forward, stage, microbatch]
            if stage < last:
                assert start >= ends[kind, stage + 1, microbatch] + costs.p2p
    for rank, passes in enumerate(timeline.passes):
        for before, after in pairwise(passes):
            assert after.start >= before.end
        assert sum(kept.end - kept.start for kept in passes) == timeline.busy[rank]
    assert timeline.seconds == pytest.approx(timeline.ideal + timeline.imbalance + timeline.waiting + costs.tail)
    assert timeline.waiting >= 0


@given(unlike(), st.data())
@settings(max_examples=60, deadline=None)
def test_no_step_gets_shorter_by_more_work(costs: PipelineCosts, data: st.DataObject) -> None:
    before = simulate(costs).pipeline
    rank = data.draw(st.integers(0, costs.ranks - 1))
    chunk = data.draw(st.integers(0, costs.chunks - 1))
    more = [list(row) for row in costs.forward]
    more[rank][chunk] += 3
    assert (
        before
        <= simulate(replace(costs, forward=more)).pipeline
        <= before + 3 * costs.microbatches * costs.ranks * costs.chunks
    )
    assert before <= simulate(replace(costs, p2p=costs.p2p + 1)).pipeline


@given(unlike())
@settings(max_examples=60, deadline=None)
def test_no_step_is_shorter_than_its_longest_chain(costs: PipelineCosts) -> None:
    """The longest path through passes that need each other, transfers between them included."""
    free = replace(costs, microbatches=1 if costs.chunks == 1 else costs.ranks)
    once = sum(cost for grid in (costs.forward, costs.backward) for row in grid for cost in row)
    chain = once + 2 * costs.p2p * (costs.ranks * costs.chunks - 1)
    assert simulate(costs).pipeline >= simulate(free).pipeline >= chain
    if costs.chunks == 1:
        assert simulate(free).pipeline == chain


@pytest.mark.parametrize(
    ("forward", "backward", "microbatches", "said"),
    [
        ([[1], [1, 1]], [[1], [1, 1]], 4, "one cost for each chunk"),
        ([[1], [1]], [[1]], 4, "one cost for each chunk"),
        ([[1], [-1]], [[1], [1]], 4, "below 0"),
        ([[1], [1]], [[1], [1]], 0, "nothing to do"),
    ],
)
def test_costs_that_make_no_sense(
    forward: list[list[float]], backward: list[list[float]], microbatches: int, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        PipelineCosts(forward, backward, microbatches)


def _by_stage(timeline: Timeline) -> Iterator[tuple[tuple[Pass, int, int], float, float]]:
    for rank, passes in enumerate(timeline.passes):
        for kind, chunk, microbatch, start, end in passes:
            yield (kind, chunk * timeline.costs.ranks + rank, microbatch), start, end
