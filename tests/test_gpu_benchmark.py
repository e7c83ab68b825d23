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
    only = ("3b sqrt_alibi", "attention", "vocabulary")
    command = [sys.executable, "-m", "tests.benchmarks.gpu", "--tiny", "--only", *only, "--out", str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=runner.on_the_cpu())
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (file,) = tmp_path.glob("gpu-*.json")
    results = json.loads(file.read_text())
    assert results["versions"]["torch"] and "commit" in results
    found = results["measurements"]
    assert {name: one["state"] for name, one in found.items()} == dict.fromkeys(
        (CHECK.name, "3b sqrt_alibi: ours", "attention", "loss over the vocabulary"), "done"
    )
    for part in ("", "recompute full"):
        figures = found["3b sqrt_alibi: ours"]["parts"][part]
        assert figures["tokens_a_second"] > 0 and figures["tflops"] > 0 and figures["mfu"] is None
        assert sum(figures["time_split"].values()) == pytest.approx(1)
        assert all(np.isfinite(figures["losses"]))
    assert found["3b sqrt_alibi: ours"]["parts"][""]["profile"]["kernels"]
    assert "3b sqrt_alibi: ours (recompute full)" in ran.stdout and "toy sizes" in ran.stdout


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
    assert list(table.lines({"scale": "tiny", "measurements": {"x": found}}))[-1].startswith(
        "  x: failed: ended with 1"
    )


def test_a_table_of_a_gpu_says_which_aims_are_met() -> None:
    split = {"forward": 0.3, "backward": 0.6, "optimizer": 0.05, "communication": 0.0, "other": 0.05}
    ours = {"tokens_a_second": 26_000.0, "mfu": 0.51, "peak_gib": 95.0, "time_split": split}
    theirs = {"tokens_a_second": 13_000.0, "mfu": 0.25, "peak_gib": 120.0, "attention": "sdpa", "compiled": True}
    biased = {"tokens_a_second": 20_000.0, "mfu": 0.40, "peak_gib": 95.0, "time_split": split}
    parts = {
        "3b rope: ours": {"": ours, "recompute full": {"failed": "out of memory: much"}},
        "3b rope: transformers": {"": theirs},
        "3b sqrt_alibi: ours": {"": biased},
        "3b rope: ours in fp8": {"": {**ours, "tokens_a_second": 33_800.0, "mfu": 0.66}},
        "against the CPU": {"rope bf16": {"differences": {"loss": 0.2}, "allowed": {"loss": 0.01}, "holds": False}},
    }
    found = {name: {"state": "done", "parts": of} for name, of in parts.items()}
    found["loss over the vocabulary"] = {"state": "skipped", "why": "without something"}
    lines = list(table.lines({"scale": "full", "measurements": found}))
    for line in (
        "aim: MFU of 3b rope at least 50 %: met, 51.0 %",
        "aim: MFU of 3b sqrt_alibi at least 45 %: NOT MET, 40.0 %",
        "aim: MFU of 1b rope at least 45 %: not measured",
        "aim: 3b at least 1.5 x transformers: met, 2.00",
        "aim: 3b at no more memory: met, 0.79 of theirs",
        "3b in fp8 over bf16: 1.30",
        "  3b rope: ours (recompute full): out of memory: much",
        "  against the CPU (rope bf16): outside of what is allowed",
        "  loss over the vocabulary: skipped: without something",
    ):
        assert line in lines, line


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
        assert callable(one.load()) and set(one.needs) <= libraries.versions().keys()


def test_what_is_said_to_be_needed_is_enough() -> None:
    ours = [one.name for one in MEASUREMENTS if not one.call.startswith("peers:")]
    command = [sys.executable, "-W", "ignore", "-m", "tests.only_needed", *ours]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=runner.on_the_cpu())
    assert ran.returncode == 0, ran.stderr
    assert {"hydra", "webdataset", "pytest"} <= set(ran.stdout.split())
