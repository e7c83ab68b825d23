"""The real `megaphone` command: exit codes, one line an error, nothing half-written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from launch.selection import read_words
from runtime.exits import BAD_INPUT, DONE, BadInput
from tests.configs.recipes import write_recipe

REPOSITORY = Path(__file__).resolve().parents[2]
GROUP_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "SLURM_STEP_ID")


def megaphone(*words: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in GROUP_VARIABLES}
    return subprocess.run(
        [sys.executable, "-m", "launch.cli", *words],
        cwd=folder,
        env={**kept, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": "", **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    return write_recipe(tmp_path / "recipe")


@pytest.mark.parametrize(
    ("command", "word", "said"),
    [
        ("train", "train.stepz=3", "did you mean train.steps?"),
        ("train", "parallel.tensor=3", "parallel.tensor=3 does not divide backbone.heads=4"),
        ("run", "engine.deepspeed.optimizer.type=Lion", "engine.deepspeed is for engine.name=deepspeed"),
        ("train", "parallel.data=3", "loader.lanes=8 does not divide"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    recipe: str, tmp_path: Path, command: str, word: str, said: str
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    stage = [] if command == "run" else ["stage=pretrain"]
    ended = megaphone(command, f"recipe={recipe}", "scale=tiny", *stage, word, folder=work)
    assert ended.returncode == BAD_INPUT
    assert ended.stderr.startswith("megaphone: error: ") and said in ended.stderr
    assert ended.stderr.count("\n") == 1 and ended.stdout == ""
    assert list(work.iterdir()) == []


def test_bad_input_of_a_rank_in_a_process_group(recipe: str, tmp_path: Path) -> None:
    words = ("train", f"recipe={recipe}", "scale=tiny", "stage=pretrain", f"run.folder={tmp_path / 'run'}")
    ended = megaphone(*words, "parallel.tensor=2", folder=tmp_path, RANK="1", WORLD_SIZE="3")
    assert ended.returncode == BAD_INPUT
    assert "= 2 does not divide the 3 processes" in ended.stderr and ended.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_missing_corpus_is_one_line_and_leaves_nothing(recipe: str, tmp_path: Path) -> None:
    words = ("train", f"recipe={recipe}", "scale=tiny", "stage=pretrain", f"run.folder={tmp_path / 'run'}")
    ended = megaphone(*words, f"corpus.folder={tmp_path / 'nowhere'}", folder=tmp_path)
    assert ended.returncode == BAD_INPUT
    assert "no corpus at" in ended.stderr and ended.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_cfg_prints_what_would_run(recipe: str, tmp_path: Path) -> None:
    ended = megaphone("train", f"recipe={recipe}", "scale=tiny", "stage=align", "--cfg", folder=tmp_path)
    assert ended.returncode == DONE
    assert OmegaConf.create(ended.stdout).stage.name == "align"
    ended = megaphone("run", f"recipe={recipe}", "scale=tiny", "--cfg", folder=tmp_path)
    assert [OmegaConf.create(part).stage.name for part in ended.stdout.split("---\n")] == ["pretrain", "align"]


def test_a_run_folder_that_is_none(tmp_path: Path) -> None:
    ended = megaphone("checkpoint", "export", str(tmp_path), folder=tmp_path)
    assert ended.returncode == BAD_INPUT and "is no run folder" in ended.stderr


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys, launch.cli\n"
        "try: launch.cli.main(['--help'])\n"
        "except SystemExit as ended: assert ended.code == 0\n"
        "heavy = {'torch', 'numpy', 'hydra', 'omegaconf', 'transformers', 'megatron', 'rich'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    for command in ("run", "train", "data", "checkpoint", "evaluate", "report"):
        assert re.search(rf"\n    {command}\s", ended.stdout)


def test_words_are_sorted() -> None:
    selection = read_words(["train.steps=3", "scale=tiny", "recipe=r", "~a.b", "stage=s"])
    assert (selection.recipe, selection.scale, selection.stage) == ("r", "tiny", "s")
    assert selection.overrides == ("train.steps=3", "~a.b")
    for words in (["recipe=a", "recipe=b"], ["scale="]):
        with pytest.raises(BadInput):
            read_words(words)


def test_run_takes_whole_recipes(recipe: str) -> None:
    with pytest.raises(BadInput, match="give recipe="):
        read_words(["train.steps=3"]).stages()
    with pytest.raises(BadInput, match=r"megaphone train \.\.\. stage=align"):
        read_words([f"recipe={recipe}", "stage=align"]).stages()
    assert read_words([f"recipe={recipe}", "scale=tiny"]).first().stage.name == "pretrain"
