"""Qwen2 and Qwen2.5: Llama with biases of queries, keys and values."""

from __future__ import annotations

from checkpoints.maps import llama
from checkpoints.maps.architecture import Architecture
from checkpoints.maps.config_form import ConfigForm
from checkpoints.rules import Rule
from configs.schema import BackboneConfig


def rules(backbone: BackboneConfig) -> list[Rule]:
    return [*llama.rules(backbone), llama.QKV_BIAS]


FORM = ConfigForm(
    "qwen2",
    "Qwen2ForCausalLM",
    "qwen2",
    defaults={"tie_word_embeddings": False, "rms_norm_eps": 1e-6},
    fixed={"hidden_act": "silu", "use_sliding_window": False},
    meant={"qkv_bias": True},
)
QWEN2 = Architecture("qwen2", ("qwen2",), ("Qwen2ForCausalLM",), rules, FORM.read_config, FORM.write_config)
