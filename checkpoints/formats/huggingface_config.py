"""Whether a config.json holds what a model's config can hold, before anybody computes with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoints.safety import quoted, read_json_object
from runtime.exits import BadInput

_MOST = 1 << 31
_MOST_LAYERS = 10_000
_LAYERS = ("num_hidden_layers", "num_layers", "encoder_layers", "decoder_layers")
_COUNTS = (
    *_LAYERS,
    "hidden_size",
    "intermediate_size",
    "moe_intermediate_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "num_attention_groups",
    "multi_query_group_num",
    "head_dim",
    "kv_channels",
    "vocab_size",
    "padded_vocab_size",
    "max_position_embeddings",
    "seq_length",
    "num_experts",
    "num_local_experts",
    "num_experts_per_tok",
)
_REALS = (
    "rms_norm_eps",
    "layernorm_epsilon",
    "layer_norm_eps",
    "rope_theta",
    "rope_ratio",
    "initializer_range",
    "scale_emb",
    "scale_depth",
    "dim_model_base",
    "factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "partial_rotary_factor",
)
_FLAGS = ("tie_word_embeddings", "attention_bias", "mlp_bias", "qkv_bias", "add_qkv_bias", "use_sliding_window")
_WORDS = ("model_type", "hidden_act", "torch_dtype", "dtype", "rope_type", "type")
_OBJECTS = ("rope_scaling", "rope_parameters")
_NEVER_NULL = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size", *_LAYERS, "model_type")


def read_config(path: Path) -> dict[str, Any]:
    """A config.json whose known values have the types and sizes that a model's can have; unknown keys are let be.

    Raises BadInput, one line that names the key, where one has not.
    """
    config = read_json_object(path)
    _check(path, config)
    return config


def _check(path: Path, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if value is None:
            fits = key not in _NEVER_NULL
        elif key in _COUNTS:
            fits = type(value) is int and 0 < value <= (_MOST_LAYERS if key in _LAYERS else _MOST)
        elif key in _REALS:
            fits = type(value) in (int, float) and _is_small(value)
        elif key in _FLAGS:
            fits = type(value) is bool
        elif key in _WORDS:
            fits = isinstance(value, str)
        elif key in _OBJECTS:
            fits = isinstance(value, dict)
        else:
            continue
        if not fits:
            raise BadInput(f"{path}: {key} is {quoted(value)}, which no model has")
        if isinstance(value, dict):
            _check(path, value)


def _is_small(value: float) -> bool:
    """Whether it is a finite number that a float holds."""
    return abs(value) < 1e30 and math.isfinite(value)
