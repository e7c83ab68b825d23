"""Finding out a path's format; plain files; legacy Megatron-LM files that a splitter of this test's own wrote."""

from __future__ import annotations

import argparse
import importlib
import os
import pickle
import random
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from checkpoints.formats.megatron_names import local_name, native_names
from checkpoints.formats.source import Format, detect, open_source
from checkpoints.formats.stacking import parts
from checkpoints.formats.torch_files import Inert, fields, load
from checkpoints.maps import of_backbone
from configs.schema import BackboneConfig
from runtime.exits import BadInput

HEADS, KV_HEADS, HIDDEN, FFN, ROWS = 8, 4, 16, 24, 32
Tensors = dict[str, torch.Tensor]


# --- a model of Llama's family, and its legacy files written rank by rank ---------------------------------------------


def huggingface(layers: int, tied: bool) -> Tensors:
    """Random tensors under Hugging Face's names."""
    generator = torch.Generator().manual_seed(layers)
    head = HIDDEN // HEADS
    shapes = {"model.embed_tokens.weight": (ROWS, HIDDEN), "model.norm.weight": (HIDDEN,)}
    if not tied:
        shapes["lm_head.weight"] = (ROWS, HIDDEN)
    for layer in range(layers):
        before = f"model.layers.{layer}."
        shapes |= {
            f"{before}input_layernorm.weight": (HIDDEN,),
            f"{before}post_attention_layernorm.weight": (HIDDEN,),
            f"{before}self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            f"{before}self_attn.k_proj.weight": (KV_HEADS * head, HIDDEN),
            f"{before}self_attn.v_proj.weight": (KV_HEADS * head, HIDDEN),
            f"{before}self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"{before}mlp.gate_proj.weight": (FFN, HIDDEN),
            f"{before}mlp.up_proj.weight": (FFN, HIDDEN),
            f"{before}mlp.down_proj.weight": (HIDDEN, FFN),
        }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


OLD = {"norm1": "input_layernorm", "qkv": "self_attention.query_key_value", "proj": "self_attention.dense"}
OLD |= {"norm2": "post_attention_layernorm", "up": "mlp.dense_h_to_4h", "down": "mlp.dense_4h_to_h"}
CORE = {"norm1": "input_layernorm", "qkv": "self_attention.linear_qkv", "proj": "self_attention.linear_proj"}
CORE |= {"norm2": "pre_mlp_layernorm", "up": "mlp.linear_fc1", "down": "mlp.linear_fc2"}


def layer_of(model: Tensors, layer: int, rank: int, world: int) -> Tensors:
    """A tensor-parallel rank's part of a layer, cut as Megatron's column- and row-parallel linear layers cut it."""
    before = f"model.layers.{layer}."
    head = HIDDEN // HEADS
    queries, keys, values = (model[f"{before}self_attn.{kind}_proj.weight"] for kind in "qkv")
    a_group = HEADS // KV_HEADS
    rows = []
    for group in range(KV_HEADS * rank // world, KV_HEADS * (rank + 1) // world):
        rows += [queries[(group * a_group + turn) * head :][:head] for turn in range(a_group)]
        rows += [keys[group * head :][:head], values[group * head :][:head]]
    share, width = FFN // world, HIDDEN // world
    return {
        "norm1": model[f"{before}input_layernorm.weight"],
        "norm2": model[f"{before}post_attention_layernorm.weight"],
        "qkv": torch.cat(rows),
        "proj": model[f"{before}self_attn.o_proj.weight"][:, rank * width : (rank + 1) * width].clone(),
        "up": torch.cat(
            [model[f"{before}mlp.{kind}_proj.weight"][rank * share : (rank + 1) * share] for kind in ("gate", "up")]
        ),
        "down": model[f"{before}mlp.down_proj.weight"][:, rank * share : (rank + 1) * share].clone(),
    }


def write_legacy(
    folder: Path, model: Tensors, tensor: int, pipeline: int, chunks: int, layers: int, *, old: bool, tied: bool
) -> Path:
    """Megatron-LM's files of a run on tensor x pipeline ranks with `chunks` virtual stages; returns their folder."""
    each = layers // (pipeline * chunks)
    share = ROWS // tensor
    for rank in range(tensor):
        rows = slice(rank * share, (rank + 1) * share)
        for stage in range(pipeline):
            held: dict[str, Any] = {}
            for chunk in range(chunks):
                first = (chunk * pipeline + stage) * each
                start, end = first == 0, first + each == layers
                trunk = {
                    f"layers.{local}.{(OLD if old else CORE)[kind]}.weight": part
                    for local in range(each)
                    for kind, part in layer_of(model, first + local, rank, tensor).items()
                }
                if end:
                    trunk["final_layernorm.weight"] = model["model.norm.weight"]
                embedding = model["model.embed_tokens.weight"][rows].clone()
                head = None if tied else model["lm_head.weight"][rows].clone()
                if old:
                    inside: dict[str, Any] = {"encoder": trunk}
                    if start:
                        inside["embedding"] = {"word_embeddings": {"weight": embedding}}
                    if end and head is not None:
                        inside["output_layer"] = {"weight": head}
                    whole: dict[str, Any] = {"language_model": inside}
                    if end and tied and pipeline > 1:
                        whole["word_embeddings_for_head"] = {"weight": embedding}
                else:
                    whole = {f"decoder.{name}": part for name, part in trunk.items()}
                    whole |= {f"decoder.layers.{local}.mlp.linear_fc1._extra_state": None for local in range(each)}
                    if start:
                        whole["embedding.word_embeddings.weight"] = embedding
                    if end and (head is not None or pipeline > 1):
                        whole["output_layer.weight"] = embedding if head is None else head
                held["model" if chunks == 1 else f"model{chunk}"] = whole
            name = f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if pipeline > 1 else "")
            (folder / "iter_0000007" / name).mkdir(parents=True)
            torch.save({**held, **beside(tied)}, folder / "iter_0000007" / name / "model_optim_rng.pt")
    (folder / "latest_checkpointed_iteration.txt").write_text("7")
    return folder


def beside(tied: bool) -> dict[str, Any]:
    """What Megatron-LM puts beside a model, objects of its own among it."""
    module = types.ModuleType("megatron.core.enums")
    module.ModelType = type("ModelType", (), {"__module__": module.__name__, "__qualname__": "ModelType"})  # type: ignore[attr-defined]
    sys.modules.setdefault(module.__name__, module)
    arguments = argparse.Namespace(
        untie_embeddings_and_output_weights=not tied,
        model_type=sys.modules[module.__name__].ModelType(),  # type: ignore[attr-defined]
        params_dtype=torch.float32,
        data_path=["a", "b"],
    )
    state = {"random_rng_state": random.getstate(), "np_rng_state": np.random.get_state()}
    return {"args": arguments, "checkpoint_version": 3.0, "iteration": 7, "rng_state": [state]}


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


# --- formats and plain files ------------------------------------------------------------------------------------------


def test_what_a_path_holds_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file or folder"):
        detect(tmp_path / "absent")
    with pytest.raises(BadInput, match="holds nothing; readable are"):
        detect(tmp_path)
    (tmp_path / "weights.h5").write_bytes(b"")
    with pytest.raises(BadInput, match=r"holds weights\.h5; readable are"):
        detect(tmp_path)
    with pytest.raises(BadInput, match=r"weights\.h5: not a checkpoint that is read"):
        detect(tmp_path / "weights.h5")
    (tmp_path / "latest").write_text("../elsewhere")
    with pytest.raises(BadInput, match=r"names '\.\./elsewhere', which is no folder beside it"):
        detect(tmp_path)


@pytest.mark.parametrize("nested", [None, "state_dict", "module"])
def test_plain_files(nested: str | None, tmp_path: Path) -> None:
    tensors = {"decoder.layers.0.input_layernorm.weight": torch.randn(4), "model.embed_tokens.weight": torch.eye(3)}
    save_file(tensors, tmp_path / "all.safetensors")
    torch.save({nested: tensors, "epoch": 3} if nested else tensors, tmp_path / "pytorch_model.bin")
    torch.save({"optimizer": {}}, tmp_path / "training.pt")
    for path, kind in (
        (tmp_path / "all.safetensors", Format.safetensors),
        (tmp_path / "pytorch_model.bin", Format.torch_file),
    ):
        assert detect(path) == (kind, path)
        source = open_source(path)
        norm = "decoder.layers.0.self_attention.linear_qkv.layer_norm_weight"
        assert source.names == {norm, "model.embed_tokens.weight"}
        assert source.shape_and_dtype(norm) == ((4,), torch.float32)
        assert torch.equal(source.read(norm), tensors["decoder.layers.0.input_layernorm.weight"])
        with pytest.raises(BadInput, match="has no tensor other"):
            source.read("other")
    (tmp_path / "all.safetensors").unlink()
    assert detect(tmp_path) == (Format.torch_file, tmp_path)
    assert open_source(tmp_path).names == {norm, "model.embed_tokens.weight"}


def test_layers_have_to_be_there_and_alike(tmp_path: Path) -> None:
    weight = "decoder.layers.{}.mlp.linear_fc2.weight"
    for shapes, words in (({0: 3, 2: 3}, "layer 1 of 3 has none"), ({0: 3, 1: 4}, "layers have to be alike")):
        save_file(
            {weight.format(layer): torch.zeros(size) for layer, size in shapes.items()}, tmp_path / "a.safetensors"
        )
        with pytest.raises(BadInput, match=words):
            parts(open_source(tmp_path / "a.safetensors"))


# --- files of torch.save that are not to be trusted -------------------------------------------------------------------


class Hostile:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.arguments


@pytest.mark.parametrize("call", [os.system, eval, exec, os.mkdir, pickle.loads, importlib.import_module])
def test_code_in_a_file_is_refused_and_not_run(call: Any, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    words = f"mkdir {proof}" if call is os.system else f"__import__('os').mkdir({str(proof)!r})"
    argument: Any = str(proof) if call is os.mkdir else words
    torch.save({"weight": torch.zeros(2), "args": Hostile(call, argument)}, tmp_path / "a.pt")
    with pytest.raises(BadInput, match=r"a\.pt: refused, it names"):
        load(tmp_path / "a.pt")
    assert not proof.exists()


def test_objects_of_known_programs_are_kept_as_data(tmp_path: Path) -> None:
    beside_model = beside(True)
    torch.save(beside_model, tmp_path / "a.pt")
    held = load(tmp_path / "a.pt")
    assert fields(held["args"])["data_path"] == ["a", "b"]
    assert isinstance(fields(held["args"])["model_type"], Inert)
    assert held["iteration"] == 7


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_files_are_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp()
    whole, damaged = folder / "whole.pt", folder / "damaged.pt"
    if not whole.exists():
        torch.save({"model": {"a": torch.arange(40.0)}, **beside(False)}, whole)
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    try:
        load(damaged)
    except BadInput as error:
        assert "\n" not in str(error)
