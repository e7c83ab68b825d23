"""Architectures by name and by config.json, and what each refuses in one line."""

from __future__ import annotations

import math
from typing import Any

import pytest

from checkpoints.maps import check_architecture, describe, described, differences, of_backbone, of_config
from checkpoints.shapes import native_shape
from configs.compose import compose_stage
from configs.schema import Positions, RopeScaling, RopeScalingKind
from runtime.exits import BadInput
from tests.checkpoints.models import backbone
from tests.configs.recipes import write_recipe


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architecture": "lama"}, "backbone.architecture=lama: not one of llama, "),
        ({"qkv_bias": True}, "backbone.qkv_bias=True: architecture llama has False only"),
        ({"architecture": "qwen2"}, "backbone.qkv_bias=False: architecture qwen2 has True only"),
        ({"qk_norm": True}, "backbone.qk_norm=True: architecture llama has False only"),
        ({"positions": Positions.sqrt_alibi}, "backbone.positions=sqrt_alibi: architecture llama has rope only"),
    ],
)
def test_a_backbone_that_its_architecture_does_not_have_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as raised:
        of_backbone(backbone(**changes))
    assert str(raised.value).startswith(said) and "\n" not in str(raised.value)


def test_an_unknown_model_type_is_refused_with_those_known() -> None:
    with pytest.raises(BadInput, match="model_type='mamba' is not known here; known are llama, "):
        of_config({"model_type": "mamba"})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["backbone.architecture=lama"], "backbone.architecture=lama: not one of"),
        (
            ["backbone.qk_norm=true"],
            "export.huggingface=true: backbone.qk_norm=True: architecture llama has False only",
        ),
        (["backbone.qk_norm=true", "backbone.weights=x", "export.huggingface=false"], "weights: backbone.qk_norm=True"),
        (["backbone.qk_norm=true", "export.huggingface=false"], None),
    ],
)
def test_contradictions_matter_where_a_form_is_read_or_written(
    tmp_path_factory: pytest.TempPathFactory, settings: list[str], said: str | None
) -> None:
    recipe = write_recipe(tmp_path_factory.mktemp("recipe"))
    config = compose_stage(recipe, "tiny", "pretrain", settings)
    if said is None:
        check_architecture(config)
        return
    with pytest.raises(BadInput) as raised:
        check_architecture(config)
    assert said in str(raised.value)


_LLAMA_LIKE: dict[str, Any] = {"hidden_act": "silu", "initializer_range": 0.02, "tie_word_embeddings": False}
# Of published config.json files, what says how the model is computed.
PUBLISHED: dict[str, dict[str, Any]] = {
    "llama3_1_8b": {
        **_LLAMA_LIKE,
        "model_type": "llama",
        "attention_bias": False,
        "mlp_bias": False,
        "pretraining_tp": 1,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "max_position_embeddings": 131072,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "rope_type": "llama3",
            "original_max_position_embeddings": 8192,
        },
    },
    "mistral_7b_v0_3": {
        **_LLAMA_LIKE,
        "model_type": "mistral",
        "sliding_window": None,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-5,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "max_position_embeddings": 32768,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "qwen2_5_7b": {
        **_LLAMA_LIKE,
        "model_type": "qwen2",
        "sliding_window": 131072,
        "use_sliding_window": False,
        "max_window_layers": 28,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "max_position_embeddings": 131072,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
    },
    "qwen3_8b": {
        **_LLAMA_LIKE,
        "model_type": "qwen3",
        "sliding_window": None,
        "use_sliding_window": False,
        "attention_bias": False,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "max_position_embeddings": 40960,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000,
        "head_dim": 128,
        "rope_scaling": None,
    },
    "glm4_9b_chat": {
        "model_type": "chatglm",
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "rmsnorm": True,
        "apply_residual_connection_post_layernorm": False,
        "ffn_hidden_size": 13696,
        "hidden_size": 4096,
        "kv_channels": 128,
        "layernorm_epsilon": 1.5625e-07,
        "multi_query_attention": True,
        "rope_ratio": 500,
        "multi_query_group_num": 2,
        "num_attention_heads": 32,
        "num_hidden_layers": 40,
        "num_layers": 40,
        "original_rope": True,
        "padded_vocab_size": 151552,
        "post_layer_norm": True,
        "seq_length": 131072,
        "tie_word_embeddings": False,
        "apply_query_key_layer_scaling": True,
    },
    "step_audio_chat_130b": {
        "model_type": "step1",
        "hidden_size": 12288,
        "intermediate_size": 31232,
        "num_attention_heads": 96,
        "num_attention_groups": 8,
        "num_hidden_layers": 88,
        "max_seq_len": 32768,
        "rms_norm_eps": 1e-5,
    },
    "step_audio_tts_3b": {
        "model_type": "step1",
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_attention_heads": 48,
        "num_attention_groups": 4,
        "num_hidden_layers": 32,
        "max_seq_len": 32768,
        "rms_norm_eps": 1e-5,
    },
    "minicpm_2b": {
        "architectures": ["MiniCPMForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": 2304,
        "rope_scaling": None,
        "intermediate_size": 5760,
        "max_position_embeddings": 4096,
        "num_attention_heads": 36,
        "scale_emb": 12,
        "num_hidden_layers": 40,
        "num_key_value_heads": 36,
        "rms_norm_eps": 1e-5,
        "dim_model_base": 256,
        "scale_depth": 1.4,
        "initializer_range": 0.1,
    },
}
# Billions of parameters that were published or follow from published sizes of files, at the rows of the published
# vocabulary.
COUNTED = {
    "step_audio_chat_130b": (74752, "131.947"),
    "step_audio_tts_3b": (74752, "3.5297"),
    "glm4_9b_chat": (151552, "9.40"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_backbones_here_are_those_of_published_files(name: str) -> None:
    of = compose_stage("quickstart", "tiny", None, [f"backbone={name}", "parallel=single"]).backbone
    assert differences(of, PUBLISHED[name]) == []
    theirs = of_config(PUBLISHED[name]).read_config(PUBLISHED[name])
    assert theirs.architecture == of.architecture and theirs.max_positions == of.max_positions
    again = of_backbone(of).write_config(of)
    rope = ("rope_theta", "rope_scaling", "sliding_window", "architectures")
    for key in PUBLISHED[name].keys() & again.keys() - set(rope):
        assert again[key] == PUBLISHED[name][key], key
    if name in COUNTED:
        rows, published = COUNTED[name]
        count = 0
        for rule in of_backbone(of).rules(of):
            shape = native_shape(rule.native, of, rows)
            assert shape is not None
            count += math.prod(shape) * (of.layers if rule.layered else 1)
        assert f"{count / 1e9:.{len(published.partition('.')[2])}f}" == published


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("mistral_7b_v0_3", {"sliding_window": 4096}, "sliding_window=4096 is below max_position_embeddings=32768"),
        ("qwen2_5_7b", {"use_sliding_window": True}, "use_sliding_window=True; of qwen2 only"),
        ("llama3_1_8b", {"attention_bias": True}, "attention_bias=True; of llama only"),
        ("llama3_1_8b", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5; here these heads rotate"),
        ("llama3_1_8b", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type='dynamic'; computed are"),
        ("llama3_1_8b", {"rope_scaling": {"type": "llama3"}}, "rope_type llama3 without factor"),
        (
            "llama3_1_8b",
            {"rope_scaling": {"type": "yarn", "factor": 2.0, "mscale": 0.7}},
            "mscale=0.7 of rope_type yarn",
        ),
        ("llama3_1_8b", {"hidden_size": "4096"}, "hidden_size='4096' is no whole number above 0"),
        ("llama3_1_8b", {"rms_norm_eps": -1.0}, "rms_norm_eps=-1.0 is no number above 0"),
        ("llama3_1_8b", {"num_hidden_layers": None}, "num_hidden_layers=None is no whole number above 0"),
        ("glm4_9b_chat", {"post_layer_norm": False}, "post_layer_norm=False; of chatglm only"),
        ("minicpm_2b", {"num_experts": 8}, "num_experts=8; of minicpm only models without it"),
        ("minicpm_2b", {"mup_denominator": 32}, "mup_denominator=32"),
    ],
)
def test_what_is_computed_otherwise_is_refused(name: str, changes: dict[str, Any], said: str) -> None:
    config = {**PUBLISHED[name], **changes}
    with pytest.raises(BadInput) as raised:
        of_config(config).read_config(config)
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_a_window_that_never_bites_is_read() -> None:
    config = {**PUBLISHED["mistral_7b_v0_3"], "sliding_window": 32768}
    assert of_config(config).read_config(config).max_positions == 32768


def test_a_described_backbone_is_read_again() -> None:
    of = backbone(rope_scaling=RopeScaling(RopeScalingKind.llama3, 8.0, 8192), positions=Positions.rope)
    assert described(describe(of)) == of
    with pytest.raises(BadInput, match="none of this version"):
        described({"wheels": 4})
