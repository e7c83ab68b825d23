"""How a job's end is judged, from the codes that its ranks left, and when it is queued again."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.checks import check
from configs.compose import compose_stage
from configs.schema import Config
from launch.slurm.ending import Leaving, decide, verdict
from launch.slurm.looked import decide as without_sick
from launch.slurm.record import Attempt, Submitted
from launch.slurm.requeue import may_leave_out
from launch.slurm.sizes import require_sizes, sizes
from runtime.exits import BAD_INPUT, DONE, FAILED, HALTED, HUNG, STOPPED_EARLY, BadInput
from tests.configs.recipes import write_recipe


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


def test_a_broken_node_is_left_out_though_no_restarts_are_allowed_and_named_where_it_has_to_stay() -> None:
    job = Submitted("train", 7, "name", 2, requeues=3, restarts=0)
    told = {"checkpoint": None, "cancelled": False, "lost": []}
    found = Leaving({"node2": "rank 1 on node2: GPU broken"}, "1 of 4 left out")
    assert decide(FAILED, job, [], leaving=found, **told) == (
        True,
        "a rank failed; queued again without node2, 1 of 4 left out",
    )
    again, reason = decide(FAILED, job, [], leaving=Leaving(said="node2 stays: no other node"), **told)
    assert not again and "node2 stays: no other node" in reason and "resilience.restarts" in reason


def looked(*attempts: Attempt, before: int = 0, sick: tuple[str, ...] = ("node2",), cancelled: bool = False) -> str:
    job = Submitted("train", 7, "name", 2, requeues=3)
    found = {"sick": sick, "reason": "node2: slow"}
    again, reason = without_sick(found, job, attempts, before=before, most=2, cancelled=cancelled)
    assert again is ("queued again without" in reason)
    return reason


def test_sick_nodes_are_left_out_so_many_at_most() -> None:
    assert looked() == "preflight: node2: slow; queued again without node2, 1 of 2 left out"
    assert looked(before=1).endswith("2 of 2 left out")
    reason = looked(before=1, sick=("node2", "node3"))
    assert "2 more to leave out, 1 were left out before, 2 at most (cluster.preflight.exclusions)" in reason
    assert "cancelled" in looked(cancelled=True)
    assert "cluster.requeues" in looked(*[attempt(STOPPED_EARLY)] * 3)


def test_what_preflights_and_failures_leave_out_has_one_bound() -> None:
    assert may_leave_out(3, 1, 4)[0] and not may_leave_out(4, 1, 4)[0] and not may_leave_out(0, 1, 0)[0]


def sized(tmp_path: Path, *words: str) -> Config:
    told = ["launcher=slurm", "cluster.ranks_per_node=4", "cluster.nodes=8", "parallel.tensor=2", *words]
    told += ["train.global_batch=48", "train.validation_packs=48", "loader.lanes=48", "cluster.gpus_per_node=0"]
    return compose_stage(write_recipe(tmp_path), "tiny", "pretrain", told)


def test_sizes_are_those_that_the_batch_and_the_lanes_divide_over(tmp_path: Path) -> None:
    assert sizes(sized(tmp_path)) == [8]
    assert sizes(sized(tmp_path, "cluster.fewest_nodes=1")) == [8, 6, 4, 3, 2, 1]  # 10 and 14 copies do not divide 48
    assert sizes(sized(tmp_path, "cluster.fewest_nodes=3", "parallel.context=4")) == [8, 6, 4]  # a model over two nodes
    require_sizes(sized(tmp_path, "cluster.fewest_nodes=6"))
    with pytest.raises(BadInput, match=r"cluster\.fewest_nodes=7: fewer than 8 will not do: .*14 data-parallel copies"):
        require_sizes(sized(tmp_path, "cluster.fewest_nodes=7"))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["cluster.fewest_nodes=9"], "from 1 to cluster.nodes=8"),
        (["cluster.fewest_nodes=1", "parallel.data=16"], "leave out parallel.data=16"),
        (["corpus.tasks=4"], r"cluster\.corpus\.tasks decides"),
        (["cluster.corpus.tasks=0"], r"cluster\.corpus\.tasks=0: has to be above 0"),
    ],
)
def test_sizes_and_arrays_that_cannot_be_are_refused(tmp_path: Path, words: list[str], line: str) -> None:
    with pytest.raises(BadInput, match=line):
        check(sized(tmp_path, *words))
