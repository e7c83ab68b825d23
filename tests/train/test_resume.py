"""Faults, really caused, and the same command again: the curve must be the one of a run that nothing happened to."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from configs.compose import to_yaml
from configs.schema import Config
from runtime.exits import DONE, STOPPED_EARLY
from tests.data_pipeline.synthetic import make_corpus
from tests.ranks import RankFailed, run_ranks
from tests.train.runs import metrics, run_config, stage, tiny_config

STEPS = 12


def config_of(folder: Path, corpus: Path, **changes: Any) -> Config:
    settings = {"train__steps": STEPS, "checkpoint__every": 4, "train__log_samples": True, **changes}
    return tiny_config(folder, corpus, **settings)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "corpus"
    make_corpus(folder)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Two data-parallel ranks, with the distributed optimiser."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    return run_config(config_of(folder, corpus, parallel__distributed_optimizer=True), 2)


def faulty_stage(config_file: str, victim: int, call: str, turn: int, number: int) -> int:
    """The stage, but rank `victim` sends itself a signal as it enters `call` of its engine for the `turn`-th time."""
    from train.engines.megatron import MegatronEngine

    original, turns = getattr(MegatronEngine, call), iter(range(1, 1_000_000))

    def hit(self: MegatronEngine, *arguments: Any, **named: Any) -> Any:
        if next(turns) == turn and int(os.environ["RANK"]) == victim:
            os.kill(os.getpid(), number)
        return original(self, *arguments, **named)

    setattr(MegatronEngine, call, hit)
    return stage(config_file)


def write(config: Config) -> str:
    folder = Path(config.run.folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    return str(folder / "config.yaml")


CURVE = ("step", "tokens", "audio_hours", "loss", "loss/text", "loss/audio", "grad_norm", "lr/trunk", "samples")


def curve(lines: list[dict[str, Any]]) -> list[list[Any]]:
    return [[line.get(key) for key in CURVE] for line in lines]


@pytest.mark.parametrize("killed_in_step", [1, 6, 9])
def test_kill_9_of_one_rank(
    killed_in_step: int, corpus: Path, uninterrupted: list[dict[str, Any]], tmp_path: Path
) -> None:
    config = config_of(tmp_path / "run", corpus, parallel__distributed_optimizer=True)
    with pytest.raises(RankFailed):
        run_ranks(faulty_stage, 2, write(config), 1, "train_step", killed_in_step, signal.SIGKILL)
    assert not (tmp_path / "run" / "results.json").exists()
    assert curve(run_config(config, 2)) == curve(uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_rank_stops_all_with_a_checkpoint(
    number: int, corpus: Path, uninterrupted: list[dict[str, Any]], tmp_path: Path
) -> None:
    config = config_of(tmp_path / "run", corpus, parallel__distributed_optimizer=True)
    file = write(config)
    assert run_ranks(faulty_stage, 2, file, 1, "train_step", 6, number) == [STOPPED_EARLY] * 2
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["status"], results["step"]) == ("stopped", 6)
    assert (tmp_path / "run/checkpoints/step-00000006/manifest.json").is_file()
    assert curve(run_config(config, 2)) == curve(uninterrupted)


def test_a_signal_in_validation_is_honoured_before_validation_ends(corpus: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path / "run", corpus, train__validate_every=6, train__validation_packs=8)
    file = write(config)
    # The run validates before its first step: 8 packs in 8 calls, and the signal comes in the third.
    assert run_ranks(faulty_stage, 1, file, 0, "evaluate", 3, signal.SIGTERM) == [STOPPED_EARLY]
    assert (tmp_path / "run/validation.jsonl").read_text() == ""
    assert (tmp_path / "run/checkpoints/step-00000000/manifest.json").is_file()
    assert run_ranks(stage, 1, file) == [DONE]
    validated = [json.loads(line)["step"] for line in (tmp_path / "run/validation.jsonl").read_text().splitlines()]
    assert validated == [0, 6, 12]


def test_resumed_on_other_topologies_the_samples_are_the_same_and_the_curve_agrees(
    corpus: Path, tmp_path: Path
) -> None:
    config = config_of(tmp_path / "run", corpus)
    whole = run_config(config)
    for name, world, changes in [
        ("DP2", 2, {}),
        ("TP2", 2, {"parallel__tensor": 2}),
        ("PP2", 2, {"parallel__pipeline": 2}),
    ]:
        folder = tmp_path / name
        shutil.copytree(tmp_path / "run", folder)
        shutil.rmtree(folder / "checkpoints/step-00000012")
        resumed = run_config(config_of(folder, corpus, **changes), world)
        assert [line["samples"] for line in resumed] == [line["samples"] for line in whole], name
        for ours, theirs in zip(resumed, whole, strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4), (name, ours["step"])
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3), (name, ours["step"])
        assert curve(resumed[:8]) == curve(whole[:8]), "lines before the checkpoint are kept as they were"


def test_a_truncated_checkpoint_is_refused_by_name_and_the_previous_one_used(
    corpus: Path, uninterrupted: list[dict[str, Any]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = config_of(tmp_path / "run", corpus, parallel__distributed_optimizer=True)
    run_config(config, 2)
    newest = sorted((tmp_path / "run/checkpoints").glob("step-*"))[-1]
    part = next(newest.glob("tensors/*.distcp"))
    with part.open("r+b") as file:
        file.truncate(part.stat().st_size // 2)
    assert curve(run_config(config, 2)) == curve(uninterrupted)
    assert metrics(tmp_path / "run")[-1]["step"] == STEPS


def test_a_truncated_shard_is_skipped_counted_and_reported(corpus: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "corpus"
    shutil.copytree(corpus, damaged)
    shard = sorted(damaged.glob("train/*.tar"))[0]
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size * 9 // 10)
    lines = run_config(config_of(tmp_path / "run", damaged, loader__damaged_share=0.5))
    assert len(lines) == STEPS
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["damaged"] and all(count > 0 for count in results["damaged"].values())


def test_too_much_damage_stops_the_run_with_one_line(
    corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "corpus"
    shutil.copytree(corpus, damaged)
    for shard in damaged.glob("train/*.tar"):
        with shard.open("r+b") as file:
            file.truncate(shard.stat().st_size // 10)
    assert run_ranks(stage, 1, write(config_of(tmp_path / "run", damaged))) == [2]


@pytest.mark.parametrize("distributed", [False, True], ids=["plain optimiser", "distributed optimiser"])
def test_saved_on_an_interleaved_pipeline_and_back(distributed: bool, corpus: Path, tmp_path: Path) -> None:
    """Each leg takes the last one's newest checkpoint 4 steps further on another topology."""
    constant = {"optimizer__schedule": "constant"}
    whole = run_config(config_of(tmp_path / "whole", corpus, checkpoint__every=0, train__steps=20, **constant))
    folder = tmp_path / "run"
    interleaved = {"parallel__pipeline": 2, "parallel__virtual_pipeline": 2}
    overlapped = {"parallel__overlap_gradients": True, "parallel__overlap_parameters": distributed}
    lines = []
    for step, world, changes in [
        (4, 4, {**interleaved, **overlapped}),
        (8, 2, {"parallel__pipeline": 2, "parallel__pipeline_layout": "Et|tttL"}),
        (12, 2, overlapped),
        (16, 1, {"parallel__recompute": "full"}),
        (20, 4, {**interleaved, "parallel__tensor": 2}),
    ]:
        settings = {**changes, **constant, "train__steps": step, "parallel__distributed_optimizer": distributed}
        lines = run_config(config_of(folder, corpus, **settings), world)
    for ours, theirs in zip(lines, whole, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4), ours["step"]
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3), ours["step"]
