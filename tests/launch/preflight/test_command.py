"""The command as torchrun starts it, and as a user does who has nothing but this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from runtime.exits import BAD_INPUT, DONE, SICK
from tests.configs.recipes import write_recipe

REPOSITORY = Path(__file__).resolve().parents[3]


def run(tmp_path: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command, f"recipe={write_recipe(tmp_path / 'recipe')}", f"run.folder={tmp_path}/run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_under_torchrun_all_ranks_are_one_node(tmp_path: Path) -> None:
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node=2")
    said = run(tmp_path, *torchrun, "-m", "launch.cli", "preflight", "scale=tiny", "stage=pretrain")
    assert said.returncode == DONE, said.stdout + said.stderr
    assert "preflight of 1 nodes" in said.stdout
    assert "all well" in said.stdout, said.stdout
    (report,) = json.loads((tmp_path / "run" / "pretrain" / "preflight.json").read_text())["nodes"].values()
    assert report["figures"]["within"] > 0
    assert "no GPUs: there is no nvidia-smi" in report["notes"]


def test_alone_it_starts_its_ranks_and_the_exit_code_says_what_was_found(tmp_path: Path) -> None:
    words = ("launch.cli", "preflight", "scale=tiny", "stage=pretrain")
    said = run(tmp_path, *words, "cluster.preflight.least={available: 1.0e+6}")
    assert said.returncode == SICK, said.stdout + said.stderr
    assert "at least 1e+06 GB are wanted (cluster.preflight.least.available)" in said.stdout
    said = run(tmp_path, *words, "cluster.preflight.seconds=0")
    assert said.returncode == BAD_INPUT
    assert said.stderr == "megaphone: error: cluster.preflight.seconds=0.0: has to be above 0\n"
