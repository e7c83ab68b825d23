"""Run folders: what is written before training, and when a run may be gone on with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from configs.compose import compose_stage, load_config
from configs.schema import Config
from launch.runfolder import differences, is_finished, load_run, prepare, wait_for_prepared
from runtime.exits import BadInput
from tests.configs.recipes import write_recipe


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return compose_stage(write_recipe(tmp_path / "recipe"), "tiny", "pretrain", [f"run.folder={tmp_path / 'run'}"])


def with_progress(config: Config) -> Path:
    folder = prepare(config).parent
    (folder / "metrics.jsonl").touch()
    return folder


def test_config_and_environment_are_written(config: Config) -> None:
    file = prepare(config)
    assert load_config(file) == config == load_run(file.parent)
    environment = json.loads((file.parent / "environment.json").read_text())
    assert environment["packages"]["torch"] and environment["cores"] >= 1
    assert sorted(path.name for path in file.parent.iterdir()) == ["config.yaml", "environment.json"]


def test_a_run_with_progress_is_gone_on_with_as_it_was(config: Config) -> None:
    folder = with_progress(config)
    prepare(config)
    other = replace(config, optimizer=replace(config.optimizer, lr=0.5))
    before = (folder / "config.yaml").read_bytes()
    with pytest.raises(BadInput) as caught:
        prepare(other)
    assert "optimizer.lr (0.001 -> 0.5)" in str(caught.value) and "\n" not in str(caught.value)
    assert (folder / "config.yaml").read_bytes() == before


def test_without_progress_a_config_may_still_change(config: Config) -> None:
    prepare(config)
    other = replace(config, optimizer=replace(config.optimizer, lr=0.5))
    assert load_config(prepare(other)) == other


@pytest.mark.parametrize("section", ["parallel", "train", "tracker", "export"])
def test_where_and_how_a_run_runs_may_change(config: Config, section: str) -> None:
    changes = {
        "parallel": {"tensor": 2, "data": 2},
        "train": {"micro_batch": 2, "validate_every": 7},
        "checkpoint": {"every": 3, "keep": 0},
        "tracker": {"wandb": "disabled"},
        "export": {"huggingface": False},
    }
    with_progress(config)
    other = replace(config, **{section: replace(getattr(config, section), **changes[section])})
    assert load_config(prepare(other)) == other


def test_what_is_learned_may_not(config: Config) -> None:
    source = replace(config.mixture.sources["asr"], weight=9.0)
    mixture = replace(config.mixture, sources={**config.mixture.sources, "asr": source})
    assert list(differences(config, replace(config, mixture=mixture))) == ["mixture.sources.asr.weight"]
    fewer = {name: kept for name, kept in config.mixture.sources.items() if name != "asr"}
    lost = differences(config, replace(config, mixture=replace(config.mixture, sources=fewer)))
    assert "mixture.sources.asr.layout" in lost
    assert list(differences(config, replace(config, train=replace(config.train, seed=5)))) == ["train.seed"]


def test_steps_may_change_only_where_the_schedule_does_not_look_ahead(config: Config) -> None:
    longer = replace(config, train=replace(config.train, steps=1000))
    assert list(differences(config, longer)) == ["train.steps"]
    constant = type(config.optimizer.schedule).constant
    flat = [replace(each, optimizer=replace(each.optimizer, schedule=constant)) for each in (config, longer)]
    assert differences(*flat) == {}


def test_other_ranks_wait_for_the_very_same_config(config: Config) -> None:
    with pytest.raises(BadInput, match="is the folder shared"):
        wait_for_prepared(config, timeout=0.3)
    file = prepare(config)
    assert wait_for_prepared(config, timeout=5) == file
    with pytest.raises(BadInput):
        wait_for_prepared(replace(config, scale="other"), timeout=0.3)


def test_a_folder_that_cannot_be_made_is_one_line(config: Config, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    bad = replace(config, run=replace(config.run, folder=str(tmp_path / "file" / "run")))
    with pytest.raises(BadInput, match=r"run\.folder=.*Not a directory"):
        prepare(bad)
    with pytest.raises(BadInput, match="is no run folder"):
        load_run(tmp_path)


@pytest.mark.parametrize(
    ("written", "finished"),
    [
        ('{"status": "finished", "step": 30}', True),
        ('{"status": "finished", "step": 20}', False),
        ('{"status": "stopped", "step": 30}', False),
        ('{"status": "fin', False),
        ("[]", False),
    ],
)
def test_finished_is_what_training_wrote(config: Config, written: str, finished: bool) -> None:
    assert not is_finished(config)
    (prepare(config).parent / "results.json").write_text(written)
    assert is_finished(config) is finished
