"""Slow ranks: judged from given times, and named in real runs of which one rank is really slow."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from configs.compose import to_yaml
from tests.data_pipeline.synthetic import make_corpus
from tests.ranks import run_ranks
from tests.train.runs import metrics, stage, tiny_config
from train.observe.phases import BACKWARD, COMMUNICATION, DATA, FORWARD, OPTIMIZER, OTHER
from train.resilience.stragglers import Change, Place, Stragglers, slow_times, write


def row(*, data: float = 0.1, forward: float = 1.0, wait: float = 0.9, **more: float) -> dict[str, float]:
    """Seconds of a rank's step by phase: three in all, as long as nothing is given."""
    return {DATA: data, FORWARD: forward, BACKWARD: 0.8, OPTIMIZER: 0.1, COMMUNICATION: wait, OTHER: 0.1} | more


def judge(ranks: int = 4, stages: int = 1, comparisons: int = 2) -> Stragglers:
    return Stragglers(0.1, comparisons, [Place(f"node{rank // 2}", rank * stages // ranks) for rank in range(ranks)])


def test_a_rank_is_slow_when_it_was_so_in_some_comparisons_in_a_row_and_until_it_was_not() -> None:
    slow, quick = row(forward=1.5, wait=0.4), row()
    judged, told = judge(), []
    for turn, third in enumerate((quick, slow, quick, slow, slow, slow, quick, slow, quick, quick, quick)):
        told += judged.compare(10 * turn + 1, 10 * turn + 10, [quick, quick, third, quick])
    begun, over = told
    assert begun == Change(2, "node1", True, 31, 50, 50, pytest.approx(0.5), pytest.approx(0.5 / 3), FORWARD)
    assert (over.slow, over.since, over.until, over.step) == (False, 31, 80, 100)


def test_waiting_for_others_is_no_slowness_nor_is_another_pipeline_stage() -> None:
    waiting = row(forward=0.6, wait=1.3)
    assert judge(comparisons=1).compare(1, 10, [waiting, waiting, waiting, row(wait=0.5, forward=1.4)])[0].rank == 3
    assert judge(comparisons=1).compare(1, 10, [row(), row(wait=5.0), row(wait=5.0), row()]) == []
    first, last = row(forward=0.2, wait=1.7), row(forward=1.9, wait=0.0)
    assert judge(stages=2, comparisons=1).compare(1, 10, [first, first, last, last]) == []
    (found,) = judge(stages=2, comparisons=1).compare(
        1, 10, [first, first | {DATA: 0.6, COMMUNICATION: 1.2}, last, last]
    )
    assert (found.rank, found.phase, found.host) == (1, DATA, "node0")


def test_of_two_peers_the_slower_one_is_slow() -> None:
    (found,) = judge(2, comparisons=1).compare(1, 10, [row(data=0.6, wait=0.4), row()])
    assert (found.rank, found.seconds, found.phase) == (0, pytest.approx(0.5), DATA)


def test_times_are_read_as_they_were_told_and_one_may_be_open(tmp_path: Path) -> None:
    assert slow_times(tmp_path) == []
    for rank, slow, until in ((5, True, 20), (6, True, 30), (5, False, 40)):
        write(tmp_path, Change(rank, "a", slow, 11, until, until + 20, 0.5, 0.2, DATA))
    assert [(found.rank, found.since, found.until) for found in slow_times(tmp_path)] == [(5, 11, 40), (6, 11, None)]


# --- real ranks ------------------------------------------------------------------------------------------------------


def slow_stage(config_file: str, victim: int, what: str) -> int:
    """The stage, but rank `victim` sleeps in steps 3 to 6, twice as long as any step before took: before it hands out
    its data, or in its forward pass."""
    from data_pipeline.loader import Loader
    from train.engines import megatron

    here, turn, longest = int(os.environ["RANK"]) == victim, [1], [0.05]

    def slowed(function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            if here and 3 <= turn[0] <= 6:
                time.sleep(2 * longest[0])
            return function(*arguments, **named)

        return call

    whole = megatron.MegatronEngine.train_step

    def train_step(*arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        outcome = whole(*arguments, **named)
        if turn[0] <= 2:
            longest[0] = max(longest[0], time.perf_counter() - began)
        turn[0] += 1
        return outcome

    megatron.MegatronEngine.train_step = train_step
    if what == "data":
        Loader.next_step = slowed(Loader.next_step)
    else:
        megatron.run = slowed(megatron.run)
    return stage(config_file)


@pytest.mark.parametrize(
    ("what", "topology"),
    [("data", {}), ("forward", {"parallel__tensor": 2, "parallel__sequence": True, "train__global_batch": 1})],
    ids=["data", "compute of a tensor-parallel rank"],
)
def test_the_slow_rank_of_a_run_is_named_with_its_host_and_its_time(
    what: str, topology: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The others wait for it in the middle of layers, or where gradients are summed."""
    settings = {"train__steps": 10, "observe__ranks_every": 2, "loader__lanes": 2, "train__global_batch": 2, **topology}
    watching = {"resilience__straggler_share": 0.3, "resilience__straggler_comparisons": 2}
    config = tiny_config(tmp_path / "run", make_corpus(tmp_path / "corpus"), **settings, **watching)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(config))
    assert run_ranks(slow_stage, 2, str(folder / "config.yaml"), 1, what) == [0, 0]
    found = slow_times(folder)
    assert [(slow.rank, slow.host, slow.since, slow.until, slow.phase) for slow in found] == [
        (1, os.uname().nodename, 3, 6, what)
    ]
    lines = metrics(folder)
    assert found[0].seconds > 0.3 * lines[5]["seconds"]
