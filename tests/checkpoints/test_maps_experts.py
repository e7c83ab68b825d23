"""Published models with experts, and those that the maps refuse."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import pytest

from checkpoints.maps import differences, of_backbone, of_config
from checkpoints.shapes import native_shape
from configs.schema import BackboneConfig, ExpertsConfig
from runtime.exits import BadInput
from train.flops import step_flops

# What is published, keys that say nothing here left out.
MIXTRAL = {
    "architectures": ["MixtralForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mixtral",
    "num_attention_heads": 32,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.02,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}
QWEN = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def backbone_of(config: dict[str, Any]) -> BackboneConfig:
    return of_config(config).read_config(config)


@pytest.mark.parametrize(
    ("config", "total", "active"),
    [(MIXTRAL, 46_702_792_704, 12.9), (QWEN, 30_532_122_624, 3.3)],
    ids=["Mixtral-8x7B", "Qwen3-30B-A3B"],
)
def test_published_models_have_their_published_parameters(config: dict[str, Any], total: int, active: float) -> None:
    """All of them, and the billions that one token goes through."""
    backbone, rows = backbone_of(config), config["vocab_size"]
    elements = 0
    for rule in of_backbone(backbone).rules(backbone):
        shape = native_shape(rule.native, backbone, rows)
        assert shape is not None, rule.native
        elements += prod(shape) * (backbone.layers if rule.layered else 1)
    assert elements == total
    lookup = rows * backbone.hidden
    through = step_flops(backbone, rows, 1, 0.0).forward / 2 + lookup
    assert through / 1e9 == pytest.approx(active, abs=0.06)


def test_losses_beside_the_objective_are_no_part_of_the_architecture() -> None:
    backbone = backbone_of(QWEN)
    assert backbone.experts == ExpertsConfig(count=128, ffn=768, top_k=8)
    trained = replace(backbone, experts=replace(backbone.experts, balance=1e-3, z=1e-3))
    assert differences(trained, QWEN) == []
    written = of_backbone(trained).write_config(trained)
    assert {key: QWEN[key] for key in written if key in QWEN and key != "rope_scaling"} == {
        key: written[key] for key in written if key in QWEN and key != "rope_scaling"
    }
    assert differences(replace(backbone, experts=replace(backbone.experts, top_k=4)), QWEN) == [
        "experts.top_k: 8 there, 4 in backbone.qwen3_moe"
    ]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (QWEN | {"mlp_only_layers": [0]}, r"mlp_only_layers=\[0\]"),
        (QWEN | {"decoder_sparse_step": 2}, "decoder_sparse_step=2"),
        (QWEN | {"norm_topk_prob": 1}, "norm_topk_prob=1 is neither true nor false"),
        (QWEN | {"num_experts": 0}, "num_experts=0 is no number above 0"),
        (QWEN | {"num_experts": 7.5}, "experts' count=7.5 is no whole number"),
        (MIXTRAL | {"sliding_window": 4096}, "sliding_window=4096 is below max_position_embeddings=32768"),
        ({key: MIXTRAL[key] for key in MIXTRAL if key != "num_local_experts"}, "num_local_experts=None is no number"),
    ],
)
def test_what_is_not_computed_here_is_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        backbone_of(config)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architecture": "llama", "qk_norm": False}, "architecture llama has None only"),
        ({"architecture": "mixtral", "qk_norm": False}, "backbone.experts.ffn=768: architecture mixtral has 6144 only"),
        ({"experts": None}, "has no experts; architecture qwen3_moe always has"),
        ({"experts": ExpertsConfig(128, 768, 8, dense_first=1)}, "backbone.experts.dense_first=1"),
    ],
)
def test_backbones_that_an_architecture_has_not(changes: dict[str, Any], said: str) -> None:
    backbone = replace(backbone_of(QWEN), **changes)
    with pytest.raises(BadInput, match=said):
        of_backbone(backbone)
