"""Parts of a model read straight from a Hugging Face folder: the numbers of its tensors, and misfits by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from safetensors.torch import load_file, save_file

from checkpoints.filling import fill
from checkpoints.formats.huggingface import CONFIG_FILE
from checkpoints.formats.huggingface_config import read_config
from checkpoints.maps import of_config
from configs.schema import BackboneConfig
from runtime.exits import BadInput
from tests.data_pipeline.test_text_to_code import save_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model")


def backbone_of(folder: Path) -> BackboneConfig:
    config = read_config(folder / CONFIG_FILE)
    return of_config(config).read_config(config)


def part(name: str, shape: tuple[int, ...], layer: int, axis: int, rank: int) -> ShardedTensor:
    """Half `rank` of two along `axis`, of one of two layers, that are stacked."""
    return ShardedTensor.from_rank_offsets(
        f"decoder.layers.{name}", torch.full(shape, -1.0), (0, layer, 2), (axis + 1, rank, 2), prepend_axis_num=1
    )


def test_a_part_has_the_rows_or_columns_of_its_rank(folder: Path) -> None:
    down, qkv = (
        part("mlp.linear_fc2.weight", (32, 32), 1, 1, 1),
        part("self_attention.linear_qkv.weight", (32, 32), 0, 0, 1),
    )
    assert len(fill({"0": {"down": down, "qkv": qkv}}, folder, backbone_of(folder))) == 2
    tensors = load_file(folder / "model.safetensors")
    assert torch.equal(down.data, tensors["model.layers.1.mlp.down_proj.weight"][:, 32:])
    query, key, value = (tensors[f"model.layers.0.self_attn.{name}_proj.weight"] for name in "qkv")
    assert torch.equal(qkv.data, torch.cat([query[16:], key[8:], value[8:]]))  # of the second key-value group


def test_what_does_not_fit_is_named(folder: Path) -> None:
    backbone = backbone_of(folder)
    with pytest.raises(BadInput, match=r"mlp.linear_fc2.weight is \[32, 64\], this model's is \[32, 32\]"):
        fill({"0": part("mlp.linear_fc2.weight", (32, 16), 1, 1, 0)}, folder, backbone)
    with pytest.raises(BadInput, match=r"this architecture has no decoder.layers.mlp.router.weight"):
        fill({"0": part("mlp.router.weight", (2, 32), 1, 0, 0)}, folder, backbone)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.self_attn.k_proj.weight"] = torch.zeros(8, 32)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match=r"model.layers.1.self_attn.k_proj.weight"):
        fill({"0": part("self_attention.linear_qkv.weight", (32, 32), 1, 0, 1)}, folder, backbone)
