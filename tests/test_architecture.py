"""The shape of the house: which way imports run, how long a module may be, what stays out of the source."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import grimp
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
ROOMS = ("runtime", "configs", "data_pipeline", "checkpoints", "train", "launch")
MODULES = sorted(file for room in ROOMS for file in (REPOSITORY / room).rglob("*.py"))
LONGEST_MODULE = 600

# What `launch` may know of `train` without starting a process: what works on files, names or numbers, and on exports.
DOORS = {
    *("train.audio_input", "train.exporting", "train.flops", "train.trainable", "train.weights"),
    *("train.generation.conversing", "train.generation.sampling", "train.generation.speaking"),
    *("train.generation.transcription", "train.report", "train.resilience.heartbeats"),
    *("train.decoder.codes", "train.decoder.resynthesis", "train.decoder.synthesis", "train.generation.hearing"),
}


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(*ROOMS, cache_dir=None)


def test_imports_run_one_way() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    ended = subprocess.run([linter, "--no-cache"], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_launch_reaches_training_by_its_doors_only(graph: grimp.ImportGraph) -> None:
    launch = graph.find_descendants("launch") | {"launch"}
    reached = {module for each in launch for module in graph.find_modules_directly_imported_by(each)}
    assert {module for module in reached if module.split(".")[0] == "train"} <= DOORS


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_modules_are_small_and_of_no_one_machine(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_MODULE
    for word in ("/work/", "/root/", "TODO", "FIXME"):
        assert word not in text, f"{file.relative_to(REPOSITORY)} says {word}"


def test_every_room_says_that_it_is_typed() -> None:
    assert [room for room in ROOMS if not (REPOSITORY / room / "py.typed").is_file()] == []
