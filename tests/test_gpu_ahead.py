"""A training step on a GPU that is not there: what it would run is compiled for it, at the benchmark's sizes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.absent_gpu.driver import TRITON

ROOT = Path(__file__).parents[1]
LAYERS, MICRO_BATCHES = 2, 2


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    if shutil.which("g++") is None or not TRITON.is_dir():
        pytest.skip("needs a C++ compiler, and Triton as install.sh brings it where there is no GPU")
    folder = tmp_path_factory.mktemp("ahead")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_CACHE_DIR": str(folder), "TMPDIR": str(folder)}
    command = [sys.executable, "-W", "ignore", "-m", "tests.gpu_ahead", str(folder / "found.json")]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return json.loads((folder / "found.json").read_text())


def test_the_device_has_shapes_and_no_numbers(found: Any) -> None:
    device = found["device"]
    assert device["gradient"] == ["cuda:0", [2, 3]]
    # forward, and twice backward
    assert device["product"] == {"calls": 3, "size": 4 * (16 + 16 + 16), "flops": 2 * (12 + 12 + 12)}
    assert 4 * (6 + 4) < device["memory"] < 1000
    assert device["asked"] == 1 and device["waits"] == [1]
    assert device["a mask as an index"] and device["a host's tensor"]
    assert device["on the host"] == [0, 1, 2]


@pytest.mark.parametrize("positions", ["rope", "sqrt_alibi"])
def test_a_step_compiles_and_registers_hold_what_it_needs(found: Any, positions: str) -> None:
    kernels = found["steps"][positions]["kernels"]
    assert max(kernel["spilled"] for kernel in kernels) <= 32
    assert max(kernel["shared"] for kernel in kernels) <= 227 * 1024  # what a block can have on sm_90
    launched = {
        name: sum(calls for operation, calls in found["steps"][positions]["launched"] if name in operation)
        for name in ("silu", "logsumexp", "flex")
    }
    assert launched["silu"] == 2 * LAYERS * MICRO_BATCHES  # forward and backward
    assert launched["logsumexp"] > 0
    assert (launched["flex"] > 0) == (positions == "sqrt_alibi")


@pytest.mark.parametrize("positions", ["rope", "sqrt_alibi"])
def test_the_host_waits_where_a_step_ends(found: Any, positions: str) -> None:
    lines = [line.split(":")[0] for line in found["steps"][positions]["waits"]]
    assert sorted(lines) == [*["train/engines/accounting.py"] * 2, "train/engines/megatron_optimizer.py"]


@pytest.mark.parametrize("positions", ["rope", "sqrt_alibi"])
def test_attention_copies_nothing_of_a_whole_row(found: Any, positions: str) -> None:
    one = found["steps"][positions]
    assert not [line for line in one["copied at"] if line.startswith("train/models/attention/kernels")]
    assert one["copies"] < 0.05


def test_what_the_compiler_would_choose_spills(found: Any) -> None:
    """Why `kernels.WIDE` is there; a release that chooses better will say so here."""
    kernels = {kernel["name"]: kernel["spilled"] for kernel in found["steps"]["as the compiler cuts"]["kernels"]}
    assert kernels["triton_tem_fused_flex_attention_0"] > 200
