"""What is said of checkpoints of several formats, and that nobody removes one while it is looked into."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from checkpoints import inspect
from checkpoints.inspect import describe, verify
from checkpoints.manifest import TensorRecord
from checkpoints.readers import unless_read
from checkpoints.tools.compare import compare_folders
from checkpoints.tools.extract import extract
from checkpoints.tree import tree
from launch.cli import main
from runtime.exits import BadInput
from tests.checkpoints.models import backbone, write_model
from tests.checkpoints.native import make_native, trained, weights


def test_modules_come_to_the_sum_of_what_is_below_them() -> None:
    lines = tree(
        {
            "a.x.weight": TensorRecord((2, 3), "float32"),
            "a.y": TensorRecord((5,), "bfloat16"),
            **{f"a.layers.{layer}.w": TensorRecord((7,), "float32") for layer in (0, 1, 2, 4)},
        }
    )
    words = {line.split()[0]: line.split()[-2:] for line in lines}
    assert words["a"] == [str(6 + 5 + 28), str(24 + 10 + 112)]
    assert words["x"] == ["6", "24"] and words["y"] == ["5", "10"]
    assert words["layers"] == ["28", "112"] and words["0-2"] == ["7", "28"] and words["4"] == ["7", "28"]
    assert next(line for line in lines if "0-2" in line).split()[1:4] == ["(each", "of", "3)"]
    assert len(lines) == 9 and len({len(line) for line in lines}) == 1


def test_a_native_checkpoint_with_its_optimiser(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = trained(weights(dtype=torch.bfloat16), masters=True)
    native = make_native(tmp_path / "native", held)
    assert main(["checkpoint", "inspect", str(native)]) == 0
    text = capsys.readouterr().out
    count = sum(tensor.numel() for tensor in weights().values())
    assert f"parameters: {count} in 4 tensors, {2 * count} bytes (bfloat16)" in text
    assert f"optimizer.state.fp32_param: {count} in 4 tensors, {4 * count} bytes (float32)" in text
    assert f"optimiser state: {3 * count} in 12 tensors, {12 * count:,} bytes (float32)" in text
    assert "saved on: tensor 2" in text and "[2, 6, 4]" in text


def test_other_formats(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "hf", backbone())
    text = describe(folder)
    assert "Hugging Face folder with safetensors" in text and "0-2 (each of 3)" in text
    native = make_native(tmp_path / "native", weights())
    file = extract(native, tmp_path / "part.safetensors", ["decoder.*"])
    assert "plain safetensors" in describe(file) and "0-1 (each of 2)" in describe(file)
    with pytest.raises(BadInput, match="no such checkpoint folder"):
        describe(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput):
        describe(tmp_path / "empty")


def test_formats_of_one_naming_are_compared(tmp_path: Path) -> None:
    native = make_native(tmp_path / "native", trained(weights()))
    file = extract(native, tmp_path / "all.safetensors", ["*"])
    assert compare_folders(native, file).equal()
    changed = {f"x{index}": torch.zeros(2) for index in range(2)}
    save_file(changed, tmp_path / "other.safetensors")
    with pytest.raises(BadInput, match="no name in common"):
        compare_folders(native, tmp_path / "other.safetensors")
    found = compare_folders(native, file, patterns=["decoder.layers.<1-1>.*"])
    assert len(found.differences) == 2


def test_nobody_removes_what_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native = make_native(tmp_path / "native", weights())
    descriptor = os.open(native, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with unless_read(native) as free:
            if free:
                pytest.fail("this file system has no locks, so the test cannot tell")
    finally:
        os.close(descriptor)
    seen: list[bool] = []

    def check(folder: Path) -> list[str]:
        with unless_read(folder) as free:
            seen.append(free)
        return []

    monkeypatch.setattr(inspect, "problems", check)
    assert verify(native) == [] and seen == [False]
    with unless_read(native) as free:
        assert free
