"""Llama 2 and 3.x, and SmolLM2, which is one.

Native names are what Megatron-Core's GPTModel gives its checkpoints: with layers stacked, and with the norms named
after the linear layer that follows them, as in TransformerEngine's fused layers.
"""

from __future__ import annotations

from checkpoints.maps.architecture import Architecture
from checkpoints.maps.config_form import ConfigForm
from checkpoints.rules import COPY, HALVES, QKV, Parallel, Rule
from configs.schema import BackboneConfig

LAYER = "model.layers.{layer}."
ATTENTION = LAYER + "self_attn."
QKV_PARTS = ("q_proj", "k_proj", "v_proj")

EMBEDDING = Rule("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), COPY, Parallel.vocabulary)
LAYERS = (
    Rule("decoder.layers.self_attention.linear_qkv.layer_norm_weight", (LAYER + "input_layernorm.weight",), COPY),
    Rule(
        "decoder.layers.self_attention.linear_qkv.weight",
        tuple(f"{ATTENTION}{part}.weight" for part in QKV_PARTS),
        QKV,
        Parallel.columns,
    ),
    Rule("decoder.layers.self_attention.linear_proj.weight", (ATTENTION + "o_proj.weight",), COPY, Parallel.rows),
    Rule("decoder.layers.mlp.linear_fc1.layer_norm_weight", (LAYER + "post_attention_layernorm.weight",), COPY),
)
GATE_AND_UP = Rule(
    "decoder.layers.mlp.linear_fc1.weight",
    (LAYER + "mlp.gate_proj.weight", LAYER + "mlp.up_proj.weight"),
    HALVES,
    Parallel.gated_columns,
)
DOWN = Rule("decoder.layers.mlp.linear_fc2.weight", (LAYER + "mlp.down_proj.weight",), COPY, Parallel.rows)
NORM = Rule("decoder.final_layernorm.weight", ("model.norm.weight",), COPY)
HEAD = Rule("output_layer.weight", ("lm_head.weight",), COPY, Parallel.vocabulary)
QKV_BIAS = Rule(
    "decoder.layers.self_attention.linear_qkv.bias",
    tuple(f"{ATTENTION}{part}.bias" for part in QKV_PARTS),
    QKV,
    Parallel.columns,
)


def rules(backbone: BackboneConfig) -> list[Rule]:
    """Tensors that Llama and most text LLMs after it have, under Llama's names."""
    return [EMBEDDING, *LAYERS, GATE_AND_UP, DOWN, NORM, *([] if backbone.tied_embeddings else [HEAD])]


FORM = ConfigForm(
    "llama",
    "LlamaForCausalLM",
    "llama",
    defaults={"tie_word_embeddings": False, "rms_norm_eps": 1e-6},
    fixed={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
)
LLAMA = Architecture("llama", ("llama",), ("LlamaForCausalLM",), rules, FORM.read_config, FORM.write_config)
