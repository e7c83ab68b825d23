"""Granite 3 (dense): Llama with embedding, residual stream, scores and logits scaled; MiniCPM's arithmetic."""

from __future__ import annotations

from checkpoints.maps import llama
from checkpoints.maps.architecture import Architecture
from checkpoints.maps.config_form import ConfigForm, number
from checkpoints.rules import head_dim

FORM = ConfigForm(
    "granite",
    "GraniteForCausalLM",
    "granite",
    defaults={"tie_word_embeddings": False, "rms_norm_eps": 1e-6},
    fixed={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    read=lambda written: {
        "embedding_multiplier": number(written, "embedding_multiplier", 1.0),
        "residual_multiplier": number(written, "residual_multiplier", 1.0),
        "attention_scale": number(written, "attention_multiplier", 1.0),
        "logits_divisor": number(written, "logits_scaling", 1.0),
    },
    write=lambda backbone: {
        "embedding_multiplier": float(backbone.embedding_multiplier),
        "residual_multiplier": float(backbone.residual_multiplier),
        "attention_multiplier": backbone.attention_scale or head_dim(backbone) ** -0.5,
        "logits_scaling": float(backbone.logits_divisor),
    },
)
GRANITE = Architecture(
    "granite", ("granite",), ("GraniteForCausalLM",), llama.rules, FORM.read_config, FORM.write_config
)
