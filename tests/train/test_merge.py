"""A stage that averages earlier ones: 5:5:1 in float64, the same after kill -9, and refused in one line."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.schema import Config, StageKind
from runtime.exits import BadInput
from tests.checkpoints.native import make_native, read_native, trained, weights
from tests.ranks import RankFailed, run_ranks
from tests.train.runs import tiny_config
from tests.train.test_resume import write

SHARES = {"dpo": 1.0, "sft_1": 5.0, "sft_2": 5.0}


def merge(config_file: str) -> int:
    from train.merge import main

    return main([config_file])


def killed_merge(config_file: str, turn: int) -> int:
    """The same, killed as it makes slice `turn`."""
    from checkpoints.tools import average

    original, turns = average._mean, iter(range(1, 1_000_000))

    def mean(*arguments: Any) -> torch.Tensor:
        if next(turns) == turn:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)

    average._mean = mean
    return merge(config_file)


def config_of(folder: Path) -> Config:
    config = tiny_config(folder / "merge", folder / "no-corpus")
    config.stage.kind, config.merge.weights = StageKind.merge, SHARES
    return config


def test_earlier_stages_become_one_by_weight_and_a_killed_merge_the_same(tmp_path: Path) -> None:
    sets = {}
    for seed, stage in enumerate(SHARES):
        for step in (1, 2):  # the newest counts
            tensors = weights(10 * seed + step)
            checkpoints = tmp_path / stage / "checkpoints"
            checkpoints.mkdir(parents=True, exist_ok=True)
            make_native(checkpoints / f"step-{step:08d}", trained(tensors))
        sets[stage] = tensors
    file = write(config_of(tmp_path))
    with pytest.raises(RankFailed):
        run_ranks(killed_merge, 1, file, 2)
    assert not (tmp_path / "merge/results.json").exists()
    assert run_ranks(merge, 2, file) == [0, 0]
    results = json.loads((tmp_path / "merge/results.json").read_text())
    assert results["status"] == "finished" and len(results["averaged"]) == 3
    made = read_native(Path(results["checkpoint"]))
    for name, tensor in made.items():
        expected = sum(share * sets[stage][name].double() for stage, share in SHARES.items()) / 11
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-7)
    before = Path(results["checkpoint"]).stat().st_mtime_ns
    assert run_ranks(merge, 1, file) == [0]
    assert Path(results["checkpoint"]).stat().st_mtime_ns == before, "what is there is not made again"


def test_a_stage_that_did_not_run_is_named(tmp_path: Path) -> None:
    from train.merge import newest

    assert run_ranks(merge, 1, write(config_of(tmp_path))) == [2]
    with pytest.raises(BadInput, match=r"merge.weights.dpo: no checkpoint in .*/dpo/checkpoints; run that stage first"):
        newest(tmp_path / "dpo/checkpoints", "dpo")
