"""A small random model of every architecture as its publishers would save it, and logits from outside of this project.

Of those that transformers has, its own classes make and compute the model. THUDM's names are given to transformers'
GLM, tensor by tensor; MiniCPM is computed by transformers' Granite, whose arithmetic it shares; Step-1 is written out
below in plain PyTorch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from checkpoints.maps import named, of_config
from configs.schema import BackboneConfig, ExpertsConfig, Positions, RopeScaling, RopeScalingKind
from tests.checkpoints.models import ROWS

Tensors = dict[str, torch.Tensor]
Logits = Callable[[torch.Tensor], torch.Tensor]  # of ids [n], fp32 [n, rows]


@dataclass(frozen=True)
class Case:
    """`fields`: of the backbone, beside the sizes that all have. `write`: fills a folder, and returns what computes
    its logits."""

    architecture: str
    write: Callable[[Path, BackboneConfig], Logits]
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def backbone(self) -> BackboneConfig:
        sizes: dict[str, Any] = {
            "name": self.architecture,
            "architecture": self.architecture,
            "tokenizer": "none",
            "layers": 4,
            "hidden": 96,
            "ffn": 64,
            "heads": 12,
            "kv_heads": 4,
            "max_positions": 64,
            "norm_eps": 1e-4,
        }
        return BackboneConfig(**(sizes | self.fields))


def transformers_model(of: BackboneConfig, architecture: str | None = None) -> torch.nn.Module:
    """A random one, biases and norms too: zeros and ones would hide swaps."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = named(architecture or of.architecture).write_config(of)
    settings.pop("architectures")
    config = AutoConfig.for_model(settings.pop("model_type"), vocab_size=ROWS, **settings, pad_token_id=0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        offset = 1.0 if "norm" in name else 0.0
        torch.nn.init.normal_(parameter, mean=offset, std=0.15, generator=generator)
    return model


def logits_of(model: torch.nn.Module) -> Logits:
    def logits(ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=ids[None]).logits[0].float()

    return logits


def by_transformers(folder: Path, of: BackboneConfig) -> Logits:
    model = transformers_model(of)
    model.save_pretrained(folder)
    return logits_of(model)


def by_hand(folder: Path, config: dict[str, Any], tensors: Tensors) -> None:
    """A folder with a config.json as its publishers wrote it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


# --- THUDM's names of GLM-4 -----------------------------------------------------------------------------------------


def chatglm(folder: Path, of: BackboneConfig) -> Logits:
    model = transformers_model(of, "glm")
    old = dict(model.named_parameters())
    new = {
        "transformer.embedding.word_embeddings.weight": old["model.embed_tokens.weight"],
        "transformer.encoder.final_layernorm.weight": old["model.norm.weight"],
        "transformer.output_layer.weight": old["lm_head.weight"],
        "transformer.rotary_pos_emb.inv_freq": torch.zeros(2),  # a buffer, as published files have it
    }
    for layer in range(of.layers):
        there, here = f"model.layers.{layer}.", f"transformer.encoder.layers.{layer}."
        for kind in ("weight", "bias"):
            parts = [old[f"{there}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            new[f"{here}self_attention.query_key_value.{kind}"] = torch.cat(parts)
        for ours, theirs in (
            ("self_attn.o_proj", "self_attention.dense"),
            ("mlp.gate_up_proj", "mlp.dense_h_to_4h"),
            ("mlp.down_proj", "mlp.dense_4h_to_h"),
            ("input_layernorm", "input_layernorm"),
            ("post_attention_layernorm", "post_attention_layernorm"),
        ):
            new[f"{here}{theirs}.weight"] = old[f"{there}{ours}.weight"]
    by_hand(
        folder,
        {
            "model_type": "chatglm",
            "architectures": ["ChatGLMModel"],
            "add_bias_linear": False,
            "add_qkv_bias": True,
            "apply_query_key_layer_scaling": True,
            "apply_residual_connection_post_layernorm": False,
            "ffn_hidden_size": of.ffn,
            "hidden_size": of.hidden,
            "kv_channels": of.head_dim,
            "layernorm_epsilon": of.norm_eps,
            "multi_query_attention": True,
            "multi_query_group_num": of.kv_heads,
            "num_attention_heads": of.heads,
            "num_hidden_layers": of.layers,
            "num_layers": of.layers,
            "rope_ratio": of.rope_base / 10000,
            "original_rope": True,
            "padded_vocab_size": ROWS,
            "post_layer_norm": True,
            "rmsnorm": True,
            "seq_length": of.max_positions,
            "tie_word_embeddings": False,
        },
        new,
    )
    return logits_of(model)


# --- MiniCPM --------------------------------------------------------------------------------------------------------

SCALE_EMBEDDING, SCALE_DEPTH, MODEL_BASE = 12, 1.4, 32


def minicpm(folder: Path, of: BackboneConfig) -> Logits:
    """config.json without a model_type, as published."""
    model = transformers_model(of, "granite")
    tensors = {name: tensor for name, tensor in model.named_parameters() if name != "lm_head.weight"}
    by_hand(
        folder,
        {
            "architectures": ["MiniCPMForCausalLM"],
            "hidden_act": "silu",
            "hidden_size": of.hidden,
            "intermediate_size": of.ffn,
            "max_position_embeddings": of.max_positions,
            "num_attention_heads": of.heads,
            "num_hidden_layers": of.layers,
            "num_key_value_heads": of.kv_heads,
            "rms_norm_eps": of.norm_eps,
            "rope_scaling": None,
            "scale_emb": SCALE_EMBEDDING,
            "dim_model_base": MODEL_BASE,
            "scale_depth": SCALE_DEPTH,
        },
        tensors,
    )
    return logits_of(model)


# --- Step-1, in plain PyTorch ---------------------------------------------------------------------------------------


def step1(folder: Path, of: BackboneConfig) -> Logits:
    generator = torch.Generator().manual_seed(9)
    head = of.hidden // of.heads

    def drawn(*shape: int, mean: float = 0.0) -> torch.Tensor:
        return mean + 0.15 * torch.randn(*shape, generator=generator)

    tensors = {"model.embed_tokens.weight": drawn(ROWS, of.hidden), "lm_head.weight": drawn(ROWS, of.hidden)}
    tensors["model.norm.weight"] = drawn(of.hidden, mean=1.0)
    for layer in range(of.layers):
        name = f"model.layers.{layer}."
        for part, rows in (("q", of.heads), ("k", of.kv_heads), ("v", of.kv_heads)):
            tensors[f"{name}self_attn.{part}_proj.weight"] = drawn(rows * head, of.hidden)
        tensors[name + "self_attn.o_proj.weight"] = drawn(of.hidden, of.heads * head)
        tensors[name + "mlp.gate_proj.weight"] = drawn(of.ffn, of.hidden)
        tensors[name + "mlp.up_proj.weight"] = drawn(of.ffn, of.hidden)
        tensors[name + "mlp.down_proj.weight"] = drawn(of.hidden, of.ffn)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{name}{norm}.weight"] = drawn(of.hidden, mean=1.0)
    by_hand(
        folder,
        {
            "architectures": ["Step1ForCausalLM"],
            "model_type": "step1",
            "hidden_size": of.hidden,
            "intermediate_size": of.ffn,
            "num_attention_heads": of.heads,
            "num_attention_groups": of.kv_heads,
            "num_hidden_layers": of.layers,
            "max_seq_len": of.max_positions,
            "vocab_size": ROWS,
            "rms_norm_eps": of.norm_eps,
        },
        tensors,
    )
    return lambda ids: step1_logits({name: tensor.double() for name, tensor in tensors.items()}, of, ids).float()


def step1_logits(tensors: Tensors, of: BackboneConfig, ids: torch.Tensor) -> torch.Tensor:
    """float64 [n, rows]: pre-norm, grouped queries, SwiGLU; head h at distance d has -slope_h sqrt(d) on its scores."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + of.norm_eps).sqrt() * tensors[f"{name}.weight"]

    whole = 2 ** math.floor(math.log2(of.heads))
    slopes = [2 ** (-8 * (h + 1) / whole) for h in range(whole)]
    slopes += [2 ** (-4 * (2 * h + 1) / whole) for h in range(of.heads - whole)]
    place = torch.arange(len(ids))
    distance = (place[:, None] - place[None, :]).double()
    bias = -torch.tensor(slopes, dtype=torch.float64)[:, None, None] * distance.clamp(min=0).sqrt()
    bias = bias.masked_fill(distance < 0, -math.inf)
    head = of.hidden // of.heads
    x = tensors["model.embed_tokens.weight"][ids]
    for layer in range(of.layers):
        name = f"model.layers.{layer}."
        y = norm(x, name + "input_layernorm")
        query, key, value = (
            (y @ tensors[f"{name}self_attn.{part}_proj.weight"].T).view(len(ids), -1, head).transpose(0, 1)
            for part in "qkv"
        )
        key, value = (part.repeat_interleave(of.heads // of.kv_heads, 0) for part in (key, value))
        scores = query @ key.transpose(1, 2) / math.sqrt(head) + bias
        mixed = (scores.softmax(-1) @ value).transpose(0, 1).flatten(1)
        x = x + mixed @ tensors[name + "self_attn.o_proj.weight"].T
        y = norm(x, name + "post_attention_layernorm")
        gate, up = (y @ tensors[f"{name}mlp.{part}_proj.weight"].T for part in ("gate", "up"))
        x = x + (F.silu(gate) * up) @ tensors[name + "mlp.down_proj.weight"].T
    return norm(x, "model.norm") @ tensors["lm_head.weight"].T


_UNTIED = {"tied_embeddings": False}
_GLM = {**_UNTIED, "qkv_bias": True, "rope_interleaved": True, "rope_share": 0.5, "head_dim": 16, "rope_base": 5e6}
_SCALED = {
    "embedding_multiplier": float(SCALE_EMBEDDING),
    "residual_multiplier": SCALE_DEPTH / 2,  # the root of four layers
    "logits_divisor": 96 / MODEL_BASE,
}

_EXPERTS = ExpertsConfig(count=6, ffn=40, top_k=3, normalise_top_k=False)
CASES = {
    "llama3": Case(
        "llama", by_transformers, {**_UNTIED, "rope_scaling": RopeScaling(RopeScalingKind.llama3, 8.0, 16, 1.0, 4.0)}
    ),
    "smollm2": Case("llama", by_transformers, {"head_dim": 16, "rope_base": 1e5}),
    "mistral": Case("mistral", by_transformers, {**_UNTIED, "rope_base": 1e6}),
    "qwen2": Case("qwen2", by_transformers, {"qkv_bias": True, "rope_base": 1e6}),
    "qwen3": Case("qwen3", by_transformers, {**_UNTIED, "qk_norm": True, "head_dim": 16}),
    "mixtral": Case("mixtral", by_transformers, {**_UNTIED, "experts": ExpertsConfig(count=4, ffn=64, top_k=2)}),
    "qwen3_moe": Case("qwen3_moe", by_transformers, {**_UNTIED, "qk_norm": True, "head_dim": 16, "experts": _EXPERTS}),
    "glm": Case("glm", by_transformers, _GLM),
    "chatglm": Case("chatglm", chatglm, _GLM),
    "step1": Case("step1", step1, {**_UNTIED, "positions": Positions.sqrt_alibi}),
    "minicpm": Case("minicpm", minicpm, _SCALED),
    "granite": Case("granite", by_transformers, {**_SCALED, "attention_scale": 0.2}),
}


def read(folder: Path) -> BackboneConfig:
    """The backbone that a folder's config.json describes."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return of_config(config).read_config(config)
