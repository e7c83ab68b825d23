"""The benchmark of one GPU, as far as a CPU goes: the same path at toy sizes, and what comes of measurements that break
or hang."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.benchmarks.gpu import libraries, runner, table
from tests.benchmarks.gpu.plan import CHECK, MEASUREMENTS
from tests.benchmarks.gpu.rows import STEP_AUDIO, packed_rows
from train.engines.cuda_on_cpu import emulate_cuda

ROOT = Path(__file__).parents[1]


def test_a_run_at_toy_sizes(tmp_path: Path) -> None:
    only = ("3b sqrt_alibi", "vocabulary")
    command = [sys.executable, "-m", "tests.benchmarks.gpu", "--tiny", "--only", *only, "--out", str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=runner.on_the_cpu())
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (file,) = tmp_path.glob("gpu-*.json")
    results = json.loads(file.read_text())
    assert results["versions"]["torch"] and "commit" in results
    found = results["measurements"]
    assert {name: one["state"] for name, one in found.items()} == dict.fromkeys(
        (CHECK.name, "3b sqrt_alibi: ours", "loss over the vocabulary"), "done"
    )
    for part in ("", "recompute full"):
        figures = found["3b sqrt_alibi: ours"]["parts"][part]
        assert figures["tokens_a_second"] > 0 and figures["tflops"] > 0 and figures["mfu"] is None
        assert sum(figures["time_split"].values()) == pytest.approx(1)
        assert all(np.isfinite(figures["losses"]))
    assert found["3b sqrt_alibi: ours"]["parts"][""]["profile"]["kernels"]
    assert "3b sqrt_alibi: ours (recompute full)" in ran.stdout and "not measured" in ran.stdout


def test_what_takes_too_long_costs_itself_alone(tmp_path: Path) -> None:
    found: dict[str, Any] = {}
    saved: list[str] = []
    with (tmp_path / "log").open("w") as log:
        began = time.monotonic()
        runner.Process(CHECK, "tiny", tmp_path, log).turn(0.05, found, lambda: saved.append(found["state"]))
    assert found["state"] == "out of time" and time.monotonic() - began < 30
    assert saved[-1] == "out of time"
    assert list(table.failures({"x": found})) == [("x", "out of time: not done after 0 s")]


def test_what_breaks_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nonexistent")  # no Python starts
    found: dict[str, Any] = {}
    with (tmp_path / "log").open("w") as log:
        runner.Process(CHECK, "tiny", tmp_path, log).turn(60, found, lambda: None)
    assert found["state"] == "failed" and "ended with 1" in found["why"]
    assert list(table.lines({"measurements": {"x": found}}))[-1].startswith("  x: failed: ended with 1")


def test_what_is_missing_can_be_brought() -> None:
    line = libraries.how_to_bring(["megatron-core", "omegaconf"])
    assert "megatron-core==0.16.1" in line and "--no-index" in line


def test_rows_are_full_and_in_the_vocabulary() -> None:
    packs = packed_rows(3, 8192, STEP_AUDIO, seed=0)
    assert len(packs) == 3
    for pack in packs:
        assert len(pack.tokens) == 8192 and pack.padding < 500 and pack.tokens.min() >= 0
        assert pack.tokens.max() < STEP_AUDIO.rows and len(pack.lengths) > 3
    spoken = np.concatenate([pack.label_modality[pack.loss_weight > 0] for pack in packs])
    linguistic, semantic = (np.count_nonzero(spoken == book) for book in (1, 2))
    assert semantic == pytest.approx(1.5 * linguistic, rel=0.01)  # 25 codes a second beside 16.67


def test_every_measurement_can_be_loaded() -> None:
    emulate_cuda()
    assert len({one.name for one in MEASUREMENTS}) == len(MEASUREMENTS)
    for one in MEASUREMENTS:
        assert callable(one.load())
