"""Legacy Megatron-LM files, which a splitter of the tests' own wrote, and Megatron's names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from checkpoints.conversion.reading import open_slabs
from checkpoints.formats.megatron_names import local_name, native_names
from checkpoints.formats.source import open_source
from checkpoints.formats.stacking import parts
from checkpoints.maps import of_backbone
from configs.schema import BackboneConfig
from runtime.exits import BadInput
from tests.checkpoints.legacy import FFN, HEADS, HIDDEN, KV_HEADS, huggingface, write_legacy

LEGACY = [
    {"tensor": 1, "pipeline": 1, "chunks": 1, "layers": 2, "old": True, "tied": False},
    {"tensor": 2, "pipeline": 1, "chunks": 1, "layers": 2, "old": True, "tied": True},
    {"tensor": 4, "pipeline": 2, "chunks": 1, "layers": 4, "old": True, "tied": True},
    {"tensor": 2, "pipeline": 2, "chunks": 1, "layers": 12, "old": False, "tied": False},
    {"tensor": 2, "pipeline": 2, "chunks": 2, "layers": 4, "old": False, "tied": True},
    {"tensor": 1, "pipeline": 2, "chunks": 3, "layers": 12, "old": True, "tied": False},
]


@pytest.mark.parametrize("case", LEGACY, ids=lambda case: "-".join(f"{key}{value}" for key, value in case.items()))
def test_legacy_megatron_files(case: dict[str, Any], tmp_path: Path) -> None:
    model = huggingface(case["layers"], case["tied"])
    source = open_source(write_legacy(tmp_path, model, **case))
    backbone = BackboneConfig(
        name="small",
        layers=case["layers"],
        hidden=HIDDEN,
        ffn=FFN,
        heads=HEADS,
        kv_heads=KV_HEADS,
        tied_embeddings=case["tied"],
        tokenizer="none",
    )
    expected = dict(native_tensors(model, backbone))
    assert source.names == set(expected)
    for name, tensor in expected.items():
        assert source.shape_and_dtype(name) == (tuple(tensor.shape), tensor.dtype)
        assert torch.equal(source.read(name), tensor), name
    assert open_slabs(tmp_path, backbone).left_out() == []  # the conversion engine takes it
    stacked = {part.name: part.whole for part in parts(source)}
    assert stacked["model.decoder.layers.mlp.linear_fc1.weight"] == (case["layers"], 2 * FFN, HIDDEN)
    assert len(parts(source)) == len(expected)


def native_tensors(model: Mapping[str, torch.Tensor], backbone: BackboneConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """What the architecture's map makes of Hugging Face's tensors, layers apart."""
    for rule in of_backbone(backbone).rules(backbone):
        for layer in range(backbone.layers) if rule.layered else (None,):
            name = rule.native if layer is None else rule.native.replace(".layers.", f".layers.{layer}.")
            yield name, rule.layout.fuse([model[foreign] for foreign in rule.names(layer)], backbone)


def test_legacy_files_that_are_refused(tmp_path: Path) -> None:
    case = {"tensor": 2, "pipeline": 2, "chunks": 1, "layers": 2, "old": False, "tied": False}
    folder = write_legacy(tmp_path, huggingface(2, False), **case)  # type: ignore[arg-type]
    last = folder / "iter_0000007" / "mp_rank_01_001" / "model_optim_rng.pt"
    kept = torch.load(last, weights_only=False)

    def refused(words: str, **changes: Any) -> None:
        held = {**kept, **changes}
        torch.save(held, last)
        with pytest.raises(BadInput, match=words):
            open_source(folder)

    norm = "decoder.layers.0.input_layernorm.weight"
    refused("some tensor-parallel ranks have", model={k: v for k, v in kept["model"].items() if k != norm})
    other = {**kept["model"], norm: kept["model"][norm] + 1}
    torch.save({**kept, "model": other}, last)
    with pytest.raises(BadInput, match="different values of what they should share"):
        open_source(folder).read("decoder.layers.1.self_attention.linear_qkv.layer_norm_weight")
    last.unlink()
    with pytest.raises(BadInput, match="no file of tensor-parallel rank 1, pipeline stage 1"):
        open_source(folder)
    (folder / "latest_checkpointed_iteration.txt").write_text("../7")
    with pytest.raises(BadInput, match="names no checkpoint"):
        open_source(folder)


def test_an_old_order_of_queries_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mp_rank_00").mkdir()
    torch.save({"model": {}, "checkpoint_version": 1.0}, tmp_path / "mp_rank_00/model_optim_rng.pt")
    with pytest.raises(BadInput, match=r"checkpoint_version 1\.0"):
        open_source(tmp_path)


# --- names ------------------------------------------------------------------------------------------------------------


def test_names_of_other_models_pass_unchanged() -> None:
    others = [
        "lm_head.weight",
        "model.decoder.layers.0.self_attn.q_proj.weight",
        "model.embed_tokens.weight",
        "model.layers.0.input_layernorm.weight",
        "model.norm.weight",
        "transformer.encoder.layers.0.self_attention.query_key_value.weight",
    ]
    assert native_names(others) == {name: name for name in others}


def test_a_pipeline_of_single_layers() -> None:
    """As Megatron-DeepSpeed lists its layers: the embedding, one layer each, the last norm, the head."""
    names = ["tied_modules.embed.word_embeddings.weight", "2.input_layernorm.weight", "2.mlp.dense_h_to_4h.weight"]
    names += ["10.self_attention.dense.weight", "12.weight", "13.lm_head.weight"]
    assert list(native_names(names).values()) == [
        "embedding.word_embeddings.weight",
        "decoder.layers.0.self_attention.linear_qkv.layer_norm_weight",
        "decoder.layers.0.mlp.linear_fc1.weight",
        "decoder.layers.1.self_attention.linear_proj.weight",
        "decoder.final_layernorm.weight",
        "output_layer.weight",
    ]


@given(st.integers(0, 200), st.sampled_from(["self_attention.linear_qkv", "mlp.linear_fc1"]))
def test_local_names_come_back(layer: int, linear: str) -> None:
    for leaf in ("weight", "layer_norm_weight", "lora_a"):
        native = f"decoder.layers.{layer}.{linear}.{leaf}"
        assert native_names([local_name(native)]) == {local_name(native): native}
