"""Llama-family models of Hugging Face (Llama, and Qwen2 where queries, keys and values have biases).

Native names are what Megatron-Core's GPTModel gives its checkpoints: with layers stacked, and with the norms named
after the linear layer that follows them, as in TransformerEngine's fused layers.
"""

from __future__ import annotations

import math
from typing import Any

from checkpoints.rules import COPY, HALVES, QKV, Rule
from configs.checks.attention import no_huggingface_form
from configs.schema import BackboneConfig, RopeScaling, RopeScalingKind
from runtime.exits import BadInput

_LAYER = "model.layers.{layer}."
_ATTENTION = _LAYER + "self_attn."
_QKV = ("q_proj", "k_proj", "v_proj")

_TRUNK = (
    Rule("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), COPY, vocabulary=True),
    Rule("decoder.layers.self_attention.linear_qkv.layer_norm_weight", (_LAYER + "input_layernorm.weight",), COPY),
    Rule("decoder.layers.self_attention.linear_qkv.weight", tuple(f"{_ATTENTION}{p}.weight" for p in _QKV), QKV),
    Rule("decoder.layers.self_attention.linear_proj.weight", (_ATTENTION + "o_proj.weight",), COPY),
    Rule("decoder.layers.mlp.linear_fc1.layer_norm_weight", (_LAYER + "post_attention_layernorm.weight",), COPY),
    Rule(
        "decoder.layers.mlp.linear_fc1.weight",
        (_LAYER + "mlp.gate_proj.weight", _LAYER + "mlp.up_proj.weight"),
        HALVES,
    ),
    Rule("decoder.layers.mlp.linear_fc2.weight", (_LAYER + "mlp.down_proj.weight",), COPY),
    Rule("decoder.final_layernorm.weight", ("model.norm.weight",), COPY),
)
_BIAS = Rule("decoder.layers.self_attention.linear_qkv.bias", tuple(f"{_ATTENTION}{p}.bias" for p in _QKV), QKV)
_HEAD = Rule("output_layer.weight", ("lm_head.weight",), COPY, vocabulary=True)


def rules(backbone: BackboneConfig) -> list[Rule]:
    """The rules of this backbone. Raises BadInput for one that the Llama family does not have."""
    if reason := no_huggingface_form(backbone):
        raise BadInput(f"backbone.{backbone.name}: {reason}")
    return [*_TRUNK, *([_BIAS] if backbone.qkv_bias else []), *([] if backbone.tied_embeddings else [_HEAD])]


def config(backbone: BackboneConfig) -> dict:
    """The architecture's part of Hugging Face's config.json; `differences` compares these values."""
    rope = {"rope_theta": float(backbone.rope_base), **_scaling(backbone.rope_scaling)}
    return {
        "architectures": ["Qwen2ForCausalLM" if backbone.qkv_bias else "LlamaForCausalLM"],
        "model_type": "qwen2" if backbone.qkv_bias else "llama",
        "num_hidden_layers": backbone.layers,
        "hidden_size": backbone.hidden,
        "intermediate_size": backbone.ffn,
        "num_attention_heads": backbone.heads,
        "num_key_value_heads": backbone.kv_heads,
        "head_dim": backbone.head_dim or backbone.hidden // backbone.heads,
        "rms_norm_eps": float(backbone.norm_eps),
        "rope_theta": float(backbone.rope_base),
        "rope_parameters": rope,
        "tie_word_embeddings": backbone.tied_embeddings,
        "hidden_act": "silu",
        "max_position_embeddings": backbone.max_positions,
        "initializer_range": float(backbone.init_std),
        **({} if backbone.qkv_bias else {"attention_bias": False, "mlp_bias": False}),
    }


_DEFAULTS = {"tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False, "hidden_act": "silu"}
_SCALING_DEFAULTS = {"beta_fast": 32.0, "beta_slow": 1.0, "partial_rotary_factor": 1.0, "truncate": True}
_SCALING_FREE = ("rope_theta", "type", "original_max_position_embeddings")
_FREE = ("architectures", "rope_parameters", "max_position_embeddings", "initializer_range")


def differences(backbone: BackboneConfig, written: dict) -> list[str]:
    """Where a config.json describes another model than this backbone, one "key: theirs, ours" each."""
    rope = written.get("rope_parameters") or written.get("rope_scaling") or {}
    theirs = {"rope_theta": 10000.0, **_DEFAULTS, **written}
    theirs["rope_theta"] = float(rope.get("rope_theta") or theirs["rope_theta"])
    theirs["num_key_value_heads"] = written.get("num_key_value_heads") or written.get("num_attention_heads")
    heads = written.get("num_attention_heads") or 1
    theirs["head_dim"] = written.get("head_dim") or written.get("hidden_size", 0) // heads
    ours = {key: value for key, value in config(backbone).items() if key not in _FREE}
    found = [
        f"{key}: {theirs.get(key)} there, {value} in backbone.{backbone.name}"
        for key, value in ours.items()
        if not _same(theirs.get(key), value)
    ]
    scaling = {**_SCALING_DEFAULTS, "original_max_position_embeddings": written.get("max_position_embeddings")}
    scaling |= {"rope_type": rope.get("type", "default"), **rope}
    meant = _scaling(backbone.rope_scaling)
    return found + [
        f"rope scaling {key} {scaling.get(key)} there, {meant.get(key, _SCALING_DEFAULTS.get(key))} in "
        f"backbone.{backbone.name}"
        for key in dict.fromkeys((*meant, *(key for key in scaling if key not in _SCALING_FREE)))
        if not _same(scaling.get(key), meant.get(key, _SCALING_DEFAULTS.get(key)))
    ]


def _scaling(scaling: RopeScaling | None) -> dict[str, Any]:
    """What transformers calls this scaling, in `rope_parameters`."""
    if scaling is None:
        return {"rope_type": "default"}
    named: dict[str, Any] = {"rope_type": scaling.kind.value, "factor": float(scaling.factor)}
    if scaling.kind is not RopeScalingKind.linear:
        named["original_max_position_embeddings"] = scaling.original_positions
    if scaling.kind is RopeScalingKind.llama3:
        named |= {"low_freq_factor": float(scaling.low_frequency_factor)}
        named |= {"high_freq_factor": float(scaling.high_frequency_factor)}
    if scaling.kind is RopeScalingKind.yarn:
        named |= {"beta_fast": float(scaling.beta_fast), "beta_slow": float(scaling.beta_slow)}
        named |= {} if scaling.attention_factor is None else {"attention_factor": float(scaling.attention_factor)}
    return named


def _same(theirs: Any, ours: Any) -> bool:
    """Equal, numbers to fp32's precision: some formats store them so."""
    if isinstance(theirs, float) and isinstance(ours, float):
        return math.isclose(theirs, ours, rel_tol=1e-6)
    return bool(theirs == ours)
