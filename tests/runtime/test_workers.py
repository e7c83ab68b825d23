"""Processes that do tasks: results in order, GPUs dealt out, one that is killed told in a line."""

import math
import os
import time
from pathlib import Path

import pytest

from runtime.exits import BadInput
from runtime.progress import Progress, hours_line
from runtime.workers import Workers, visible_gpus

PROGRESS = Progress("test")


def late(number: int) -> int:
    """The earlier it is given, the later it ends."""
    time.sleep(0.05 * (6 - number))
    return number


def test_results_keep_the_order_of_their_tasks_and_errors_come_through() -> None:
    with Workers(2) as workers:
        assert workers.run("p", [(late, (n,)) for n in range(6)], 6, PROGRESS, None) == list(range(6))
        assert sorted(workers.each("p", ((math.isqrt, (n * n,)) for n in range(50)), 50, PROGRESS, None)) == list(
            range(50)
        )
        with pytest.raises(ValueError, match=r"math domain error|nonnegative"):
            workers.run("p", [(math.sqrt, (-1,))], 1, PROGRESS, None)


def test_each_process_sees_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-abc")
    ask = [(os.getenv, ("CUDA_VISIBLE_DEVICES",))] * 8
    with Workers(2, deal_gpus=True) as workers:
        assert set(workers.run("p", ask, 8, PROGRESS, None)) <= {"3", "GPU-abc"}
    with Workers(1) as workers:
        assert set(workers.run("p", ask, 8, PROGRESS, None)) == {"3, GPU-abc"}


def test_visible_gpus_are_those_that_cuda_would_show(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert visible_gpus({}, tmp_path) == ["0", "2", "10"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == []
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "1,MIG-7"}, tmp_path) == ["1", "MIG-7"]


def test_process_that_is_killed_is_one_line() -> None:
    with Workers(1) as workers, pytest.raises(BadInput, match=r"was killed in phase shards.*corpus\.workers lower"):
        workers.run("shards", [(os._exit, (9,))], 1, PROGRESS, None)


def test_hours_are_hours() -> None:
    assert hours_line(1800, 7200, 60) == "0.50 of 2.00 h of speech, 30 h an hour"
