"""How many ranks a stage gets here, and which process group it would join."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from configs.compose import compose_stage
from configs.schema import Config
from launch import environment, training
from runtime.exits import BadInput
from tests.configs.recipes import write_recipe


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return compose_stage(write_recipe(tmp_path / "recipe"), "tiny", "pretrain", [])


def topology(config: Config, tensor: int, pipeline: int, data: int | None) -> Config:
    return replace(config, parallel=replace(config.parallel, tensor=tensor, pipeline=pipeline, data=data))


@pytest.mark.parametrize(
    ("gpus", "tensor", "pipeline", "data", "ranks"),
    [
        (0, 1, 1, None, 1),
        (0, 2, 2, None, 4),
        (0, 2, 1, 2, 4),
        (8, 2, 2, None, 8),
        (8, 2, 1, 2, 4),
        (1, 1, 1, None, 1),
    ],
)
def test_ranks_follow_gpus_or_topology(
    config: Config, monkeypatch: pytest.MonkeyPatch, gpus: int, tensor: int, pipeline: int, data: int | None, ranks: int
) -> None:
    monkeypatch.setattr(training, "gpus", lambda: ("GPU",) * gpus)
    assert training.local_ranks(topology(config, tensor, pipeline, data)) == ranks


@pytest.mark.parametrize(("gpus", "tensor", "data"), [(1, 2, None), (3, 2, None), (2, 2, 2)])
def test_gpus_that_do_not_fit_are_refused(
    config: Config, monkeypatch: pytest.MonkeyPatch, gpus: int, tensor: int, data: int | None
) -> None:
    monkeypatch.setattr(training, "gpus", lambda: ("GPU",) * gpus)
    with pytest.raises(BadInput, match=f"{gpus} .*visible"):
        training.local_ranks(topology(config, tensor, 1, data))


@pytest.mark.parametrize(
    ("visible", "expected"),
    [(None, ("A", "B")), ("", ()), ("1", ("B",)), ("0,1", ("A", "B")), ("-1", ()), ("1,-1,0", ("B",))],
)
def test_visible_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: tuple[str, ...]
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho A\necho B\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    environment.gpus.cache_clear()
    try:
        assert environment.gpus() == expected
    finally:
        environment.gpus.cache_clear()


def test_process_groups_are_recognised() -> None:
    assert training.process_group({}) is None
    assert training.process_group({"RANK": "0", "WORLD_SIZE": "2"}) == {}
    batch_script = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"}
    assert training.process_group(batch_script) is None
    assert training.process_group({**batch_script, "SLURM_STEP_ID": "0"}) is None
    step = {**batch_script, "SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "MASTER_ADDR": "node-0"}
    joined = training.process_group(step)
    assert joined == {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_PORT": training.DEFAULT_PORT}
    fewer = training.process_group({**step, "SLURM_STEP_NUM_TASKS": "6"})
    assert fewer is not None and fewer["WORLD_SIZE"] == "6"
