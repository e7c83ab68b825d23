"""GLM-4-9B and GLM-4-Voice-9B as THUDM published them (`chatglm`): what `glm` computes, under other names, with
queries, keys and values in one tensor.

config.json of GLM-4-9B-Chat names all that is read here; that of GLM-4-Voice-9B was seen in part. A folder that is
written here needs THUDM's own code to be run.
"""

from __future__ import annotations

from checkpoints.maps.architecture import Architecture
from checkpoints.maps.config_form import ConfigForm, number
from checkpoints.rules import COPY, QKV_BLOCKS, Parallel, Rule
from configs.schema import BackboneConfig

_EMBEDDING = "embedding.word_embeddings.weight"
_LAYER = "transformer.encoder.layers.{layer}."
_NATIVE = "decoder.layers."
_ATTENTION = _NATIVE + "self_attention."
_QKV = _LAYER + "self_attention.query_key_value."

RULES = (
    Rule(_EMBEDDING, ("transformer." + _EMBEDDING,), COPY, Parallel.vocabulary),
    Rule(_ATTENTION + "linear_qkv.layer_norm_weight", (_LAYER + "input_layernorm.weight",), COPY),
    Rule(_ATTENTION + "linear_qkv.weight", (_QKV + "weight",), QKV_BLOCKS, Parallel.columns),
    Rule(_ATTENTION + "linear_qkv.bias", (_QKV + "bias",), QKV_BLOCKS, Parallel.columns),
    Rule(_ATTENTION + "linear_proj.weight", (_LAYER + "self_attention.dense.weight",), COPY, Parallel.rows),
    Rule(_NATIVE + "mlp.linear_fc1.layer_norm_weight", (_LAYER + "post_attention_layernorm.weight",), COPY),
    Rule(_NATIVE + "mlp.linear_fc1.weight", (_LAYER + "mlp.dense_h_to_4h.weight",), COPY, Parallel.gated_columns),
    Rule(_NATIVE + "mlp.linear_fc2.weight", (_LAYER + "mlp.dense_4h_to_h.weight",), COPY, Parallel.rows),
    Rule("decoder.final_layernorm.weight", ("transformer.encoder.final_layernorm.weight",), COPY),
)
HEAD = Rule("output_layer.weight", ("transformer.output_layer.weight",), COPY, Parallel.vocabulary)


def rules(backbone: BackboneConfig) -> list[Rule]:
    return [*RULES, *([] if backbone.tied_embeddings else [HEAD])]


FORM = ConfigForm(
    "chatglm",
    "ChatGLMForConditionalGeneration",
    "chatglm",
    keys={"layers": "num_layers", "hidden": "hidden_size", "ffn": "ffn_hidden_size", "heads": "num_attention_heads"}
    | {"kv_heads": "multi_query_group_num", "head_dim": "kv_channels", "norm_eps": "layernorm_epsilon"}
    | {"tied_embeddings": "tie_word_embeddings", "max_positions": "seq_length"},
    defaults={"tie_word_embeddings": False},
    fixed={"add_bias_linear": False, "add_qkv_bias": True, "rmsnorm": True, "post_layer_norm": True}
    | {"apply_residual_connection_post_layernorm": False, "multi_query_attention": True, "original_rope": True},
    meant={"qkv_bias": True, "rope_interleaved": True, "rope_share": 0.5},
    read=lambda written: {"rope_base": 10000.0 * number(written, "rope_ratio", 1.0)},
    write=lambda backbone: {"rope_ratio": backbone.rope_base / 10000.0, "num_hidden_layers": backbone.layers},
    rope=False,
)
CHATGLM = Architecture(
    "chatglm",
    ("chatglm",),
    ("ChatGLMForConditionalGeneration", "ChatGLMModel"),
    rules,
    FORM.read_config,
    FORM.write_config,
    vocabulary_key="padded_vocab_size",
    buffers=("rotary_pos_emb.inv_freq",),
)
