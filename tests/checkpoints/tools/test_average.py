"""Averages against float64 numpy, rounded once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from checkpoints.inspect import verify
from checkpoints.manifest import read_manifest
from checkpoints.tools.average import average, exponential_weights
from configs.schema import Precision
from launch.cli import main
from runtime.exits import BadInput
from tests.checkpoints.native import VOCABULARY, make_native, read_native, trained, weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weighted_mean_is_rounded_once(dtype: torch.dtype, tmp_path: Path) -> None:
    sets = [weights(seed, dtype) for seed in range(3)]
    folders = [make_native(tmp_path / str(number), trained(tensors)) for number, tensors in enumerate(sets)]
    out = average(folders, [5, 5, 1], tmp_path / "out")
    made = read_native(out)
    assert made.keys() == sets[0].keys(), "optimiser state stays behind"
    for name, tensor in made.items():
        a, b, c = (tensors[name].double().numpy() for tensors in sets)
        expected = torch.from_numpy((5 * a + 5 * b + c) / 11)
        # Half a unit in the last place of the dtype, and a sum's rounding in float64.
        unit = torch.finfo(dtype).eps / 2 * expected.abs() * (1 + 1e-9)
        assert tensor.dtype == dtype and ((tensor.double() - expected).abs() <= unit).all()
    assert verify(out) == []
    manifest = read_manifest(out)
    assert [share["weight"] for share in manifest.origin["averaged"]] == [5, 5, 1]
    assert manifest.vocabulary == VOCABULARY and (out / "state.json").read_text() == "{}"
    assert (out / "config.yaml").read_text() == "a: 1\n"


def test_a_checkpoint_averaged_with_itself_keeps_its_bits(tmp_path: Path) -> None:
    folder = make_native(tmp_path / "a", weights())
    made = read_native(average([folder] * 3, [5, 5, 1], tmp_path / "out"))
    assert all(torch.equal(tensor, made[name]) for name, tensor in weights().items())


@given(values=st.lists(st.floats(-10, 10), min_size=1, max_size=8), decay=st.floats(0, 0.99))
def test_exponential_weights_are_the_recurrence(values: list[float], decay: float) -> None:
    expected = values[0]
    for value in values[1:]:
        expected = decay * expected + (1 - decay) * value
    shares = exponential_weights(len(values), decay)
    assert np.dot(shares, values) == pytest.approx(expected, abs=1e-9)
    assert sum(shares) == pytest.approx(1)


def test_a_runs_checkpoints_by_command(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (1, 2, 3):
        make_native(run / f"checkpoints/step-{step:08d}", weights(step), step=step)
    command = ["checkpoint", "average", str(run), "--ema", "0.5", "--last", "2", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    made = read_native(tmp_path / "out")
    for name, tensor in made.items():
        expected = (weights(2)[name].double() + weights(3)[name].double()) / 2
        assert torch.equal(tensor, expected.float())
    assert read_manifest(tmp_path / "out").step == 3
    assert main(command) == 2, "nothing is replaced"


def test_what_is_not_alike_is_refused_in_one_line(tmp_path: Path) -> None:
    a = make_native(tmp_path / "a", weights())
    lora = {f"model.decoder.layers.mlp.linear_fc2.{leaf}": torch.zeros(2, 3, 6) for leaf in ("lora_a", "lora_b")}
    for name, tensors, manifest, said in [
        ("untied", weights(tied=False), {}, "only one holds model.output_layer.weight"),
        ("bf16", weights(dtype=torch.bfloat16), {}, "say with --dtype"),
        ("vocabulary", weights(), {"vocabulary": {**VOCABULARY, "specials": ["<|b|>", "<|a|>"]}}, "other vocabularies"),
        ("lora", {**weights(), **lora}, {"origin": {"lora": {"rank": 3, "alpha": 1}}}, "low-rank updates; merge"),
    ]:
        b = make_native(tmp_path / name, tensors, **manifest)
        with pytest.raises(BadInput, match=said):
            average([b, a], [1, 1], tmp_path / "out")
    made = read_native(average([tmp_path / "bf16", a], [1, 1], tmp_path / "out", Precision.fp32))
    assert {tensor.dtype for tensor in made.values()} == {torch.float32}
    for wrong, said in (([1], "weights"), ([0, 0], "not all are 0"), ([1, -1], "below 0")):
        with pytest.raises(BadInput, match=said):
            average([a, a], wrong, tmp_path / "other")
    with pytest.raises(BadInput, match="from 0 to below 1"):
        exponential_weights(2, 1.0)
