"""Single checks on this machine, and what a stage's checkpoints take, beside one that training has written."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.schema import Precision
from launch.checkpoint_size import of_stage
from launch.preflight import host, space
from launch.preflight.meeting import Called, names_of_late
from tests.data_pipeline.synthetic import make_corpus, make_vocabulary
from tests.train.runs import run_config, tiny_config


def test_the_size_of_a_checkpoint_is_that_of_one(tmp_path: Path) -> None:
    """Of a stage that trains a part of the model: moments are of that part alone."""
    make_corpus(tmp_path / "corpus")
    config = tiny_config(tmp_path / "run", tmp_path / "corpus", train__steps=2)
    config.backbone.hidden, config.backbone.ffn = 128, 384  # else what is beside tensors counts
    config.stage.trainable = ["decoder.layers.2.*", "decoder.layers.3.*"]
    run_config(config)
    (written,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    there = sum(file.stat().st_size for file in (written / "tensors").iterdir())
    rows = make_vocabulary().padded_size
    planned = of_stage(config, rows)
    assert there == pytest.approx(planned, rel=0.05)
    config.stage.trainable = None
    whole = of_stage(config, rows)
    assert whole > 1.5 * planned and whole % 12 == 0, "weights and two moments of every parameter, in fp32"
    config.train.precision = Precision.bf16
    assert of_stage(config, rows) == whole // 12 * 14, "and copies in fp32"
    config.stage.objective = "ppo"
    assert of_stage(config, rows) == 2 * (whole // 12 * 14), "and the critic"
    config.train.precision, config.stage.objective = Precision.fp32, "pretrain"
    config.stage.trainable = ["decoder.layers.2.*", "decoder.layers.3.*"]
    room = space.room(config, make_vocabulary().padded_size, tmp_path / "run")
    assert room is not None
    assert (room.each, room.count) == (planned, 1)


@pytest.mark.parametrize(
    ("steps", "every", "keep", "keep_every", "held"),
    [
        (100, 10, 2, 0, 3),  # two, and the one that is being written
        (100, 10, 0, 0, 10),
        (105, 10, 0, 0, 11),  # the last step is saved too
        (100, 10, 2, 20, 8),
        (100, 100, 2, 0, 1),
        (100, 0, 2, 0, 1),
    ],
)
def test_checkpoints_that_are_held_at_once(
    tmp_path: Path, steps: int, every: int, keep: int, keep_every: int, held: int
) -> None:
    config = tiny_config(tmp_path, tmp_path, train__steps=steps)
    config.checkpoint.every, config.checkpoint.keep, config.checkpoint.keep_every = every, keep, keep_every
    assert space.checkpoints_held(config) == held


def test_memory_is_the_control_groups_where_that_is_less(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       1000000 kB\nMemAvailable:    600000 kB\nHugePages_Total:       0\n")
    assert host.memory(meminfo, tmp_path).figures == {"memory": 1.024, "available": 0.6144}
    (tmp_path / "memory.max").write_text("500000000\n")
    (tmp_path / "memory.current").write_text("100000000\n")
    assert host.memory(meminfo, tmp_path).figures == {"memory": 0.5, "available": 0.4}
    (tmp_path / "memory.max").write_text("max\n")
    assert host.memory(meminfo, tmp_path).figures["memory"] == 1.024


def test_no_shared_memory_is_a_trouble(tmp_path: Path) -> None:
    assert host.shared_memory(str(tmp_path / "none")).troubles == [f"{tmp_path}/none: No such file or directory"]


def test_late_ranks_by_what_they_said_or_by_the_list_of_nodes() -> None:
    called = {0: Called("a", 0), 1: Called("a", 1), 2: Called("b", 0)}
    assert names_of_late([2], called, 4, []) == {"b": [2]}
    assert names_of_late([2, 3], called, 4, ["a", "b"]) == {"b": [2, 3]}
    assert names_of_late([3], called, 4, []) == {"": [3]}
    assert names_of_late([3], called, 4, ["a", "b", "c"]) == {"": [3]}
