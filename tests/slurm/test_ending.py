"""How a job's end is judged, from the codes that its ranks left, and when it is queued again."""

from __future__ import annotations

import pytest

from launch.slurm.ending import decide, verdict
from launch.slurm.looked import decide as without_sick
from launch.slurm.record import Attempt, Submitted
from runtime.exits import BAD_INPUT, DONE, FAILED, HALTED, HUNG, SICK, STOPPED_EARLY


@pytest.mark.parametrize(
    ("step", "codes", "ranks", "expected"),
    [
        (0, {0: DONE, 1: DONE}, 2, DONE),
        (0, {0: DONE}, 2, FAILED),  # one never came to its end
        (0, {0: STOPPED_EARLY, 1: STOPPED_EARLY}, 2, STOPPED_EARLY),
        (137, {0: STOPPED_EARLY}, 2, STOPPED_EARLY),  # the other hung at a rendezvous that was called off
        (143, {0: BAD_INPUT}, 2, BAD_INPUT),
        (1, {0: FAILED, 1: HALTED}, 2, HALTED),
        (1, {0: FAILED, 1: HUNG}, 2, HUNG),
        (1, {0: FAILED, 1: STOPPED_EARLY}, 2, FAILED),
        (137, {}, 2, FAILED),
        (0, {}, 0, DONE),
        (STOPPED_EARLY, {}, 0, STOPPED_EARLY),
        (BAD_INPUT, {}, 0, BAD_INPUT),
        (139, {}, 0, FAILED),
    ],
)
def test_the_verdict_of_all_ranks(step: int, codes: dict[int, int], ranks: int, expected: int) -> None:
    assert verdict(step, codes, ranks) == expected


def attempt(code: int, checkpoint: str | None = None, queued_again: bool = True) -> Attempt:
    return Attempt(7, 0, "node1", code, "", checkpoint, queued_again, "")


def decided(code: int, *attempts: Attempt, **changes: object) -> tuple[bool, str]:
    job = Submitted("train", 7, "name", 2, requeues=3, restarts=2)
    told = {"checkpoint": None, "cancelled": False, "lost": []} | changes
    return decide(code, job, attempts, **told)  # type: ignore[arg-type]


@pytest.mark.parametrize("code", [DONE, BAD_INPUT, HALTED])
def test_what_would_end_the_same_again_is_not_queued_again(code: int) -> None:
    assert not decided(code)[0]


def test_stopping_early_is_queued_again_so_many_times() -> None:
    assert decided(STOPPED_EARLY)[0]
    assert decided(STOPPED_EARLY, *[attempt(STOPPED_EARLY)] * 2)[0]
    again, reason = decided(STOPPED_EARLY, *[attempt(STOPPED_EARLY)] * 3)
    assert not again
    assert "cluster.requeues" in reason


def test_a_cancelled_run_stays_away() -> None:
    assert decided(STOPPED_EARLY, cancelled=True) == (False, "stopped early, its progress saved; cancelled")


def test_failures_in_a_row_are_bounded_until_a_checkpoint_comes() -> None:
    assert decided(FAILED)[0]
    assert decided(FAILED, attempt(FAILED))[0]
    assert not decided(FAILED, attempt(FAILED), attempt(HUNG))[0]
    assert decided(FAILED, attempt(FAILED), attempt(HUNG), checkpoint="step-00000004")[0]
    assert decided(HUNG, attempt(FAILED), attempt(STOPPED_EARLY))[0]


def test_a_lost_node_is_no_fault_of_the_run() -> None:
    again, reason = decided(FAILED, attempt(FAILED), attempt(FAILED), lost=["node3"])
    assert again
    assert "node3 no longer answers" in reason


def test_an_unknown_job_is_left_alone() -> None:
    assert decide(FAILED, None, [], checkpoint=None, cancelled=False, lost=["node1"]) == (False, "a rank failed")


def looked(*attempts: Attempt, sick: tuple[str, ...] = ("node2",), cancelled: bool = False) -> tuple[bool, str]:
    job = Submitted("train", 7, "name", 2, requeues=3)
    found = {"sick": sick, "reason": "node2: slow"}
    return without_sick(found, job, attempts, most=2, cancelled=cancelled)


def test_sick_nodes_are_left_out_so_many_at_most() -> None:
    assert looked() == (True, "preflight: node2: slow; queued again without node2, 1 of 2 left out")
    before = Attempt(7, 0, "node[1-2]", SICK, "", None, True, "", ["node1"])
    assert looked(before)[1].endswith("2 of 2 left out")
    again, reason = looked(before, sick=("node2", "node3"))
    assert not again
    assert "2 more to leave out, 1 were left out before, 2 at most (cluster.preflight.exclusions)" in reason
    assert not looked(cancelled=True)[0]
    assert "cluster.requeues" in looked(*[attempt(STOPPED_EARLY)] * 3)[1]
