"""What each moment of a start has imported, by name: a library too many costs every command and every rank its time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.configs.recipes import write_recipe
from tests.data_pipeline.synthetic import make_corpus

REPOSITORY = Path(__file__).resolve().parents[2]
ROOMS = {"runtime", "configs", "data_pipeline", "checkpoints", "launch"}
# Configs are OmegaConf's (with yaml) and Hydra's (with antlr4); modules of files know numpy and xxhash.
CONFIGURING = {"omegaconf", "yaml", "_yaml", "hydra", "antlr4", "attr", "packaging", "numpy", "xxhash"}
# What takes long, and nothing of it is needed before there is work for it.
HEAVY = {"torch", "megatron", "deepspeed", "transformers", "datasets", "wandb", "sympy", "scipy", "sklearn", "pandas"}
HEAVY |= {"onnx", "onnxruntime", "pyarrow", "lhotse", "av", "piper", "aiohttp", "rich", "jinja2", "soundfile", "soxr"}

TELL = """
import json, sys
def tell():
    print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names))))
"""


def imported(program: str, *words: str, folder: Path) -> set[str]:
    """Packages outside the standard library that a fresh interpreter has when `program` calls `tell`."""
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TELL + program, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": "", "MEGAPHONE_CACHE": "cache"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    return {name for name in json.loads(ended.stdout.splitlines()[-1]) if "cython" not in name}  # its own parts


COMMAND = """
from launch.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
tell()
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What an interpreter of this environment imports by itself (`.pth` files)."""
    return imported("tell()", folder=tmp_path_factory.mktemp("bare"))


def test_help_is_the_command_line_alone(bare: set[str], tmp_path: Path) -> None:
    assert imported(COMMAND, "--help", folder=tmp_path) - bare == {"launch", "runtime"}
    assert imported(COMMAND, "data", "--help", folder=tmp_path) - bare == {"launch", "runtime"}


def test_a_config_is_composed_and_refused_without_what_trains(bare: set[str], tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe")
    words = ("train", f"recipe={recipe}", "scale=tiny", "stage=pretrain")
    assert imported(COMMAND, *words, "parallel.tensor=3", folder=tmp_path) - bare <= ROOMS | CONFIGURING
    assert imported(COMMAND, *words, "--cfg", folder=tmp_path) - bare <= ROOMS | CONFIGURING


def test_a_corpus_that_is_not_built_yet_is_looked_for_without_torch(tmp_path: Path) -> None:
    """Its place is named by all that decides its content: text, voice, codec."""
    assert not imported(COMMAND, "train", "recipe=quickstart", "scale=tiny", folder=tmp_path) & HEAVY
    assert not list(tmp_path.glob("runs/*")), "nothing was started"


STARTING = """
from launch import training
from launch.recovery import local
from launch.selection import read_words
local.run_again = lambda command, **_: tell()
training.train_locally(read_words(sys.argv[1:]).one())
"""


def test_ranks_are_started_by_a_process_without_torch(tmp_path: Path) -> None:
    """Everything is checked by then: settings, architecture, the corpus, the run folder."""
    recipe, corpus = write_recipe(tmp_path / "recipe"), make_corpus(tmp_path / "corpus")
    words = (f"recipe={recipe}", "scale=tiny", "stage=pretrain", f"corpus.folder={corpus}", "run.folder=run")
    assert not imported(STARTING, *words, folder=tmp_path) & HEAVY
    assert (tmp_path / "run/pretrain/config.yaml").is_file()


RANK = """
import gc
from configs.schema import Config
from train.stage import _import
_import(Config())
tell()
assert gc.isenabled() and gc.get_freeze_count() > 100_000
"""


def test_a_rank_imports_torch_and_megatron_and_nothing_else_that_takes_long(tmp_path: Path) -> None:
    there = imported(RANK, folder=tmp_path)
    assert there & HEAVY == {"torch", "megatron", "sympy", "rich"}, "sympy is torch's; rich draws the console"
