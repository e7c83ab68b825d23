"""GLM-4-9B as transformers has it (`glm`): half of every head rotates, in interleaved pairs; gate and up are one."""

from __future__ import annotations

from checkpoints.maps import llama
from checkpoints.maps.architecture import Architecture
from checkpoints.maps.config_form import ConfigForm
from checkpoints.rules import COPY, Parallel, Rule
from configs.schema import BackboneConfig

GATE_AND_UP = Rule(
    "decoder.layers.mlp.linear_fc1.weight", (llama.LAYER + "mlp.gate_up_proj.weight",), COPY, Parallel.gated_columns
)


def rules(backbone: BackboneConfig) -> list[Rule]:
    return [GATE_AND_UP if rule is llama.GATE_AND_UP else rule for rule in (*llama.rules(backbone), llama.QKV_BIAS)]


FORM = ConfigForm(
    "glm",
    "GlmForCausalLM",
    "glm",
    defaults={"tie_word_embeddings": False, "rms_norm_eps": 1.5625e-7, "head_dim": 128, "num_key_value_heads": 2},
    fixed={"hidden_act": "silu", "attention_bias": True},
    meant={"qkv_bias": True, "rope_interleaved": True},
    rope_share=0.5,
)
GLM = Architecture("glm", ("glm",), ("GlmForCausalLM",), rules, FORM.read_config, FORM.write_config)
