"""Parts of checkpoints, read back by the safetensors library and by Megatron's format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from checkpoints.inspect import verify
from checkpoints.tools.compare import compare_folders
from checkpoints.tools.extract import consolidate, extract, extract_lora
from configs.schema import Precision
from launch.cli import main
from runtime.exits import BadInput, StoppedEarly
from tests.checkpoints.disks import small_disk
from tests.checkpoints.native import make_native, read_native, trained, weights

FC2 = "model.decoder.layers.mlp.linear_fc2.weight"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_has_a_tensor_a_layer_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    held = weights(dtype=dtype)
    native = make_native(tmp_path / "native", trained(held))
    out = extract(native, tmp_path / "some" / "part.safetensors", ["decoder.layers.<1-1>.mlp.*", "embedding.*"])
    found = load_file(out)
    assert found.keys() == {
        "decoder.layers.1.mlp.linear_fc2.weight",
        "decoder.layers.1.mlp.linear_fc1.layer_norm_weight",
        "embedding.word_embeddings.weight",
    }
    assert torch.equal(found["decoder.layers.1.mlp.linear_fc2.weight"], held[FC2][1])
    assert torch.equal(found["embedding.word_embeddings.weight"], held["model.embedding.word_embeddings.weight"])
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_a_native_part_has_whole_stacks(tmp_path: Path) -> None:
    native = make_native(tmp_path / "native", trained(weights()))
    out = extract(native, tmp_path / "part", ["decoder.layers.*"], Precision.bf16)
    assert verify(out) == []
    assert all(torch.equal(t, weights()[name].bfloat16()) for name, t in read_native(out).items())
    assert len(read_native(out)) == 2
    with pytest.raises(BadInput, match="1 of 2 layers were chosen"):
        extract(native, tmp_path / "less", ["decoder.layers.<0-0>.*"])
    with pytest.raises(BadInput, match=r"no parameter like decoder\.nothing"):
        extract(native, tmp_path / "less", ["embedding.*", "decoder.nothing"])
    assert not (tmp_path / "less").exists()


def test_everything_in_one_file(tmp_path: Path) -> None:
    held = trained(weights(dtype=torch.bfloat16), masters=True)
    native = make_native(tmp_path / "native", held)
    plain = consolidate(native, tmp_path / "all.safetensors", optimizer=True)
    found = load_file(plain)
    assert torch.equal(found["decoder.layers.0.mlp.linear_fc2.weight"], held[FC2][0])
    name = "optimizer.state.fp32_param.model.decoder.layers.1.mlp.linear_fc2.weight"
    assert torch.equal(found[name], held[f"optimizer.state.fp32_param.{FC2}"][1]) and found[name].dtype == torch.float32
    assert sum(t.numel() for t in found.values()) == sum(t.numel() for t in held.values())
    with safe_open(plain, framework="pt") as file:
        assert file.metadata()["step"] == "3"

    one = consolidate(native, tmp_path / "one", optimizer=True)
    assert [path.name for path in (one / "tensors").glob("*.distcp")] == ["__0_0.distcp"]
    assert compare_folders(native, one).equal() and verify(one) == []
    assert (one / "state.json").read_text() == (native / "state.json").read_text(), "a run goes on from it"
    assert torch.load(one / "tensors/common.pt") == {"optimizer": {"step": 3}}
    light = consolidate(native, tmp_path / "light", dtype=Precision.fp32)
    assert {t.dtype for t in read_native(light).values()} == {torch.float32}
    with pytest.raises(BadInput, match="one dtype"):
        consolidate(native, tmp_path / "no", optimizer=True, dtype=Precision.fp32)


def test_low_rank_factors_alone(tmp_path: Path) -> None:
    factors = {FC2.replace("weight", leaf): torch.randn(2, 3, 4) for leaf in ("lora_a", "lora_b")}
    settings = {"rank": 3, "alpha": 6.0}
    native = make_native(tmp_path / "native", {**weights(), **factors}, origin={"lora": settings})
    with safe_open(extract_lora(native, tmp_path / "lora.safetensors"), framework="pt") as file:
        assert sorted(file.keys()) == [
            f"decoder.layers.{layer}.mlp.linear_fc2.{leaf}" for layer in (0, 1) for leaf in ("lora_a", "lora_b")
        ]
        assert json.loads(file.metadata()["lora"]) == settings
    with pytest.raises(BadInput, match="no low-rank updates"):
        extract_lora(make_native(tmp_path / "plain", weights()), tmp_path / "other.safetensors")


def test_a_full_disk_and_a_stop_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = {"model.decoder.layers.mlp.linear_fc2.weight": torch.zeros(4, 1000, 1000)}
    native, disk = make_native(tmp_path / "native", big), tmp_path / "disk"
    with small_disk(disk, 2_000_000):
        for out in (disk / "x.safetensors", disk / "native"):
            with pytest.raises(BadInput, match="cannot write") as raised:
                consolidate(native, out)
            assert "\n" not in str(raised.value) and list(disk.iterdir()) == []

    def stop(*_: object) -> None:
        raise StoppedEarly("stopped")

    monkeypatch.setattr("checkpoints.formats.native.NativeReader.read", stop)
    for out in (tmp_path / "x.safetensors", tmp_path / "y"):
        with pytest.raises(StoppedEarly):
            consolidate(native, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "native"]


def test_a_damaged_checkpoint_is_refused_by_every_tool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    native = make_native(tmp_path / "native", weights())
    file = native / "tensors/__1_0.distcp"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    capsys.readouterr()
    out = ["--out", str(tmp_path / "out")]
    for words in (
        ["diff", str(native), str(native)],
        ["average", str(native), str(native), *out],
        ["extract", str(native), "--match", "*", *out],
        ["merge", str(native), *out],
        ["consolidate", str(native), *out],
        ["vocab", str(native), "--rows", "40", *out],
    ):
        assert main(["checkpoint", *words]) == 2, words
        said = capsys.readouterr().err
        assert "its contents changed" in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()
