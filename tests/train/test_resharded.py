"""Ten steps on TP2 x PP2, the checkpoint's files laid out for another topology, and on from there: the same curve, and
not a bit of parameters or moments lost."""

from __future__ import annotations

import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from checkpoints.inspect import verify
from checkpoints.layout import TENSORS
from checkpoints.metadata import read_metadata
from checkpoints.tools.compare import compare_folders
from checkpoints.tools.reshard import reshard
from configs.schema import ParallelConfig
from launch.cli import main
from tests.data_pipeline.synthetic import make_corpus
from tests.train.runs import run_config, stage, tiny_config

BEFORE, STEPS = 10, 14
CHECKPOINT = Path(f"checkpoints/step-{BEFORE:08d}")
SETTINGS = {"train__steps": STEPS, "checkpoint__every": BEFORE, "checkpoint__keep": 0, "train__log_samples": True}
ZERO_3 = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
Curve = list[dict[str, Any]]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "corpus")


@pytest.fixture(scope="module")
def uninterrupted(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Curve]:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    config = tiny_config(folder, corpus, parallel__tensor=2, parallel__pipeline=2, **SETTINGS)
    return folder, run_config(config, 4)


@pytest.mark.parametrize(
    ("processes", "files", "settings"),
    [
        (2, {}, {"parallel__distributed_optimizer": True}),
        (4, {"pipeline": 4}, {"parallel__pipeline": 4}),
        (2, {}, {"engine__name": "deepspeed", "engine__zero_stage": 1}),
        (2, {}, {"engine__name": "deepspeed", "engine__zero_stage": 3, "engine__deepspeed": ZERO_3}),
    ],
    ids=["TP1 x DP2", "TP1 x PP4", "ZeRO-1", "ZeRO-3"],
)
def test_a_resharded_run_goes_on_as_if_nothing_had_happened(
    processes: int,
    files: dict[str, int],
    settings: dict[str, Any],
    uninterrupted: tuple[Path, Curve],
    corpus: Path,
    tmp_path: Path,
) -> None:
    before, expected = uninterrupted
    run = tmp_path / "run"
    shutil.copytree(before, run, ignore=shutil.ignore_patterns("checkpoints", "results.json"))
    laid_out = reshard(before / CHECKPOINT, run / CHECKPOINT, ParallelConfig(**files))
    assert verify(laid_out) == [] and compare_folders(before / CHECKPOINT, laid_out).equal()

    curve = run_config(tiny_config(run, corpus, **SETTINGS, **settings), processes, program=saves_what_it_loaded)
    for ours, theirs in zip(curve, expected, strict=True):
        assert ours["samples"] == theirs["samples"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4), ours["step"]
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3), ours["step"]

    # Parameters and moments as the engine held them after loading, gathered from all ranks.
    again = compare_folders(before / CHECKPOINT, run / "again" / CHECKPOINT.name)
    assert again.equal() and len(again.differences) == 24
    if files:
        assert pieces(laid_out) == pieces(run / "again" / CHECKPOINT.name), "each rank's file is what it would save"


@pytest.mark.parametrize("files", [{"tensor": 2, "pipeline": 2}, {"pipeline": 2, "pipeline_layout": "Ettt|tL"}])
def test_files_are_laid_out_as_the_ranks_save_them(
    files: dict[str, Any], uninterrupted: tuple[Path, Curve], tmp_path: Path
) -> None:
    checkpoint = uninterrupted[0] / CHECKPOINT
    one = reshard(checkpoint, tmp_path / "one", ParallelConfig())
    assert len(pieces(one)) == 1
    laid_out = reshard(one, tmp_path / "out", ParallelConfig(**files))
    assert compare_folders(checkpoint, laid_out).equal()
    if "tensor" in files:
        assert pieces(laid_out) == pieces(checkpoint)
    else:
        layers = {offsets[0] for name, offsets, _ in pieces(laid_out)["__0_0.distcp"] if ".layers." in name}
        assert layers == {0, 1, 2}
    light = tmp_path / "light"
    command = ["checkpoint", "reshard", str(uninterrupted[0]), "--drop-optimizer", "--out", str(light)]
    (uninterrupted[0] / "checkpoints" / f"step-{STEPS:08d}").rename(tmp_path / "newest")
    assert main([*command, "--tensor", "3"]) == 2 and not light.exists(), "four heads over three ranks"
    assert main(command) == 0
    (tmp_path / "newest").rename(uninterrupted[0] / "checkpoints" / f"step-{STEPS:08d}")
    found = compare_folders(checkpoint, light)
    assert len(found.only_a) == 16 and not found.only_b and all(item.identical for item in found.differences)
    assert (light / "state.json").read_text() == "{}"


def saves_what_it_loaded(config_file: str) -> int:
    """The stage, but it saves its state a second time, in `again`, as soon as it is loaded."""
    from checkpoints.saving import Saver
    from train.checkpointing import Checkpoints

    original = Checkpoints.resume

    def resume(self: Checkpoints) -> Any:
        progress = original(self)
        assert progress is not None
        Saver(Path(config_file).parent / "again").save(progress.step, *self._state(progress))
        return progress

    Checkpoints.resume = resume  # type: ignore[method-assign]
    return stage(config_file)


def pieces(checkpoint: Path) -> dict[str, set[tuple[str, tuple[int, ...], tuple[int, ...]]]]:
    """By file, name, place and shape of what is in it."""
    index = read_metadata(checkpoint / TENSORS)
    found = defaultdict(set)
    for place, where in index.storage_data.items():
        chunks = index.state_dict_metadata[place.fqn].chunks
        sizes = next(chunk.sizes for chunk in chunks if chunk.offsets == place.offset)
        found[where.relative_path].add((place.fqn, tuple(place.offset), tuple(sizes)))
    return dict(found)
