"""Low-rank updates and frozen layers through a run's life: resumed, exported, merged, continued."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints.formats.native import NativeReader
from checkpoints.lora import merge, updated
from checkpoints.manifest import read_manifest
from checkpoints.tools.compare import compare_folders
from checkpoints.tools.reshard import reshard
from configs.compose import to_yaml
from configs.schema import ParallelConfig
from launch.commands import export_run
from tests.data_pipeline.synthetic import make_corpus
from tests.ranks import run_ranks
from tests.train.runs import run_config, stage, tiny_config
from tests.train.test_resharded import pieces
from tests.train.test_resume import write
from train import export_check

LORA = {"rank": 4, "alpha": 8.0}
PART = {"stage__lora": LORA, "stage__frozen": ["decoder.layers.<0-1>.*"], "optimizer__lr": 1e-2}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "corpus")


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A run of 8 steps whose updates are trained in the upper two of four layers, on two ranks."""
    folder = tmp_path_factory.mktemp("trained") / "adapt"
    config = tiny_config(
        folder, corpus, train__steps=8, checkpoint__every=4, parallel__tensor=2, parallel__sequence=True, **PART
    )
    return folder, run_config(config, 2)


def check(folder: str) -> int:
    return export_check.main([folder])


@pytest.mark.parametrize(
    ("world", "topology"),
    [(1, {}), (2, {"parallel__tensor": 2, "parallel__sequence": True}), (2, {"parallel__pipeline": 2})],
    ids=["single", "as before", "first stage frozen"],
)
def test_resumed_on_any_topology_the_curve_goes_on(
    world: int, topology: dict[str, Any], trained: tuple[Path, list[dict[str, Any]]], corpus: Path, tmp_path: Path
) -> None:
    folder, whole = trained
    shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000008")
    settings = {"train__steps": 8, "checkpoint__every": 4, **PART, **topology}
    same_curve(run_config(tiny_config(tmp_path / "run", corpus, **settings), world), whole)


def test_a_distributed_optimiser_with_a_frozen_first_stage_resumes(
    trained: tuple[Path, list[dict[str, Any]]], corpus: Path, tmp_path: Path
) -> None:
    settings = {"train__steps": 8, "checkpoint__every": 4, "parallel__distributed_optimizer": True, **PART}
    run_config(tiny_config(tmp_path / "run", corpus, parallel__pipeline=2, **settings), 2)
    for topology in ({"parallel__pipeline": 2}, {}):
        shutil.rmtree(tmp_path / "run/checkpoints/step-00000008")
        same_curve(run_config(tiny_config(tmp_path / "run", corpus, **settings, **topology), 2), trained[1])


def same_curve(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-4), mine["step"]
        assert mine["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3), mine["step"]


def test_resharded_files_are_those_that_the_ranks_saved(
    trained: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    """Factors are cut where their weights are; optimiser state is of some layers alone."""
    checkpoint = trained[0] / "checkpoints/step-00000008"
    one = reshard(checkpoint, tmp_path / "one", ParallelConfig())
    again = reshard(one, tmp_path / "two", ParallelConfig(tensor=2))
    assert pieces(again) == pieces(checkpoint) and len(pieces(one)) == 1
    assert compare_folders(checkpoint, again).equal()


def test_merged_weights_are_those_of_the_formula(trained: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    native = trained[0] / "checkpoints/step-00000008"
    before, after = NativeReader(native / "tensors"), NativeReader(merge(native, tmp_path / "merged") / "tensors")
    assert not any("lora" in name or "optimizer" in name for name in after.tensors)
    touched = updated(before.tensors)
    assert len(touched) == 4
    for name in after.tensors:
        weight = before.read(name)
        if name in touched:
            a, b = (before.read(name.removesuffix("weight") + leaf).double() for leaf in ("lora_a", "lora_b"))
            assert b[:2].abs().max() == 0 and b[2:].abs().max() > 0, "frozen layers keep B at zero"
            torch.testing.assert_close(after.read(name), (weight.double() + 2.0 * b @ a).float())
        else:
            assert torch.equal(after.read(name), weight)
    assert read_manifest(tmp_path / "merged").origin["merged"] == {"checkpoint": "step-00000008", **LORA}


def test_an_export_holds_merged_weights(
    trained: tuple[Path, list[dict[str, Any]]], corpus: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained[0], tmp_path / "run")
    config = tiny_config(tmp_path / "run", corpus, train__steps=8, **PART)
    export_run(config)
    (tmp_path / "run/config.yaml").write_text(to_yaml(config))
    assert run_ranks(check, 1, str(tmp_path / "run")) == [0]
    agreement = json.loads((tmp_path / "run/export/check.json").read_text())
    assert agreement["max_difference"] < 1e-4 and agreement["same_argmax"] == 1.0


def test_stages_before_and_after(trained: tuple[Path, list[dict[str, Any]]], corpus: Path, tmp_path: Path) -> None:
    """From a checkpoint without updates, from one with, and without any from one with: the same first loss."""
    native = trained[0] / "checkpoints/step-00000008"
    merged = merge(native, tmp_path / "merged")
    first = {}
    for name, settings in {
        "continued": {"stage__weights": str(native), "stage__lora": LORA},
        "merged on the way": {"stage__weights": str(native)},
        "updates anew": {"stage__weights": str(merged), "stage__lora": LORA},
    }.items():
        (line,) = run_config(
            tiny_config(tmp_path / name, corpus, train__steps=1, optimizer__warmup_steps=0, **settings)
        )
        first[name] = line["loss"]
    assert list(first.values()) == pytest.approx([first["continued"]] * 3, rel=1e-5)


def test_updates_that_do_not_continue_are_refused(
    trained: tuple[Path, list[dict[str, Any]]], corpus: Path, tmp_path: Path
) -> None:
    native = str(trained[0] / "checkpoints/step-00000008")
    for number, lora in enumerate(({"rank": 4, "alpha": 4.0}, {**LORA, "targets": ["*.linear_qkv"]})):
        config = tiny_config(tmp_path / str(number), corpus, stage__weights=native, stage__lora=lora)
        assert run_ranks(stage, 1, write(config)) == [2]


def test_a_pattern_without_a_parameter_stops_all_ranks(corpus: Path, tmp_path: Path) -> None:
    for number, wrong in enumerate(({"stage__trainable": ["nothing.*"]}, {"stage__lora": {"targets": ["nothing"]}})):
        config = tiny_config(tmp_path / str(number), corpus, parallel__pipeline=2, **wrong)
        assert run_ranks(stage, 2, write(config)) == [2, 2]
