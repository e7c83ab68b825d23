"""Differences between checkpoints, against float64 numpy."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints.tools.compare import Difference, compare, compare_folders, lines
from launch.cli import main
from runtime.exits import BadInput
from tests.checkpoints.native import make_native, trained, weights

FC2 = "model.decoder.layers.mlp.linear_fc2.weight"


def only(a: torch.Tensor, b: torch.Tensor, tmp_path: Path) -> Difference:
    found = compare_folders(make_native(tmp_path / "a", {"model.x": a}), make_native(tmp_path / "b", {"model.x": b}))
    return found.differences[0]


def test_the_numbers_are_those_of_float64(tmp_path: Path) -> None:
    before = weights()
    after = {**before, FC2: before[FC2] * 1e-3 + torch.randn(2, 6, 4)}
    found = compare_folders(make_native(tmp_path / "a", before), make_native(tmp_path / "b", after))
    assert [item.name for item in found.differences if not item.identical] == [FC2]
    item = next(item for item in found.differences if item.name == FC2)
    a, b = (tensor.double().numpy().ravel() for tensor in (before[FC2], after[FC2]))
    assert item.largest == np.abs(a - b).max()
    assert item.relative == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a), rel=1e-12)
    assert item.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-12)
    assert item.same == int((before[FC2] == after[FC2]).sum()) and item.elements == 48
    assert not found.equal() and found.equal(item.largest) and not found.equal(item.largest * 0.99)


@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=8), other=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=60)
def test_equal_means_the_same_bits_whatever_they_stand_for(bits: list[int], other: int) -> None:
    class Held:
        def __init__(self, values: list[int]) -> None:
            self.tensor = torch.from_numpy(np.asarray(values, np.uint32).view(np.float32))
            self.tensors = {}

        def read(self, name: str, layer: int | None = None) -> torch.Tensor:
            return self.tensor

        def release(self) -> None:
            pass

    from checkpoints.manifest import TensorRecord

    record = {"model.x": TensorRecord((len(bits),), "float32")}
    assert compare(Held(bits), Held(list(bits)), record, record).equal(0.0)
    changed = [other, *bits[1:]]
    assert compare(Held(bits), Held(changed), record, record).equal(0.0) == (changed == bits)


def test_equal_infinities_and_nans_are_no_difference(tmp_path: Path) -> None:
    item = only(torch.tensor([math.inf, math.nan, 1.0]), torch.tensor([math.inf, math.nan, 1.5]), tmp_path)
    assert (item.largest, item.same, item.elements) == (0.5, 2, 3)


def test_nan_is_no_number_near_another(tmp_path: Path) -> None:
    item = only(torch.tensor([1.0, 2.0]), torch.tensor([1.0, math.nan]), tmp_path)
    assert math.isnan(item.largest) and not item.within(1e9)


def test_names_shapes_and_dtypes(tmp_path: Path) -> None:
    before = weights()
    after = {name: tensor.bfloat16() if name == FC2 else tensor for name, tensor in before.items()}
    after["model.new"] = torch.zeros(3)
    after["model.decoder.final_layernorm.weight"] = torch.zeros(7)
    del after["model.decoder.layers.mlp.linear_fc1.layer_norm_weight"]
    found = compare_folders(make_native(tmp_path / "a", before), make_native(tmp_path / "b", after))
    assert found.only_b == ["model.new"] and len(found.only_a) == 1
    assert set(found.mismatched) == {FC2, "model.decoder.final_layernorm.weight"}
    item = next(item for item in found.differences if item.name == FC2)
    assert 0 < item.relative < 4e-3 and item.same == 0
    assert not found.equal(1.0)
    text = "\n".join(lines(found, 0.0))
    assert "only in B: model.new" in text and "[2, 6, 4] float32 in A, [2, 6, 4] bfloat16 in B" in text


def test_the_command_says_by_its_exit_code_whether_they_are_equal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = make_native(tmp_path / "a", trained(weights()))
    b = make_native(tmp_path / "b", {**trained(weights()), f"optimizer.state.exp_avg.{FC2}": torch.zeros(2, 6, 4)})
    assert main(["checkpoint", "diff", str(a), str(a)]) == 0
    assert main(["checkpoint", "diff", str(a), str(b)]) == 1
    assert f"optimizer.state.exp_avg.{FC2}" in capsys.readouterr().out
    assert main(["checkpoint", "diff", str(a), str(b), "--weights-only"]) == 0
    assert main(["checkpoint", "diff", str(a), str(b), "--match", "model.*"]) == 0
    assert main(["checkpoint", "diff", str(a), str(tmp_path / "none")]) == 2
    with pytest.raises(BadInput, match="no tensor of"):
        compare_folders(a, b, patterns=["nothing"])
