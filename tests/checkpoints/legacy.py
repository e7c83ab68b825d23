"""A small model of Llama's family, and legacy Megatron-LM files of it, written rank by rank."""

from __future__ import annotations

import argparse
import random
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

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
    module = types.ModuleType("megatron.training.enums_of_a_test")
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
