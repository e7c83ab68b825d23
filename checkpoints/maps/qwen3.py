"""Qwen3: Llama with a norm of every query and key head."""

from __future__ import annotations

from checkpoints.maps import llama
from checkpoints.maps.architecture import Architecture
from checkpoints.maps.config_form import ConfigForm
from checkpoints.rules import COPY, Rule
from configs.schema import BackboneConfig

HEAD_NORMS = (
    Rule("decoder.layers.self_attention.q_layernorm.weight", (llama.ATTENTION + "q_norm.weight",), COPY),
    Rule("decoder.layers.self_attention.k_layernorm.weight", (llama.ATTENTION + "k_norm.weight",), COPY),
)


def rules(backbone: BackboneConfig) -> list[Rule]:
    return [*llama.rules(backbone), *HEAD_NORMS]


FORM = ConfigForm(
    "qwen3",
    "Qwen3ForCausalLM",
    "qwen3",
    defaults={"tie_word_embeddings": False, "rms_norm_eps": 1e-6, "head_dim": 128},
    fixed={"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False},
    meant={"qk_norm": True},
)
QWEN3 = Architecture("qwen3", ("qwen3",), ("Qwen3ForCausalLM",), rules, FORM.read_config, FORM.write_config)
