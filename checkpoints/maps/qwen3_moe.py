"""Qwen3-MoE: Qwen3 with experts in every layer. Models of which some layers have a plain MLP are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from checkpoints.maps import experts, qwen3
from checkpoints.maps.architecture import Architecture
from checkpoints.maps.config_form import ConfigForm
from checkpoints.rules import Rule
from configs.schema import BackboneConfig
from runtime.exits import BadInput

_EXPERT = "mlp.experts.{expert}."


def rules(backbone: BackboneConfig) -> list[Rule]:
    names = (_EXPERT + f"{part}_proj.weight" for part in ("gate", "up", "down"))
    return [*experts.rules(backbone, "mlp.gate.weight", *names), *qwen3.HEAD_NORMS]


def _read(written: Mapping[str, Any]) -> dict[str, Any]:
    normalised = written.get("norm_topk_prob", False)
    if not isinstance(normalised, bool):
        raise BadInput(f"config.json: norm_topk_prob={normalised!r} is neither true nor false")
    keys = ("num_experts", "num_local_experts")  # as published, and as transformers 5 writes it
    return experts.read(written, count=keys, ffn="moe_intermediate_size", normalised=normalised)


def _write(backbone: BackboneConfig) -> dict[str, Any]:
    own = experts.of(backbone)
    return {
        "num_experts": own.count,
        "moe_intermediate_size": own.ffn,
        "num_experts_per_tok": own.top_k,
        "norm_topk_prob": own.normalise_top_k,
    }


FORM = ConfigForm(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    "qwen3_moe",
    defaults={"tie_word_embeddings": False, "rms_norm_eps": 1e-6},
    fixed={
        "hidden_act": "silu",
        "attention_bias": False,
        "use_sliding_window": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    meant={"qk_norm": True},
    read=_read,
    write=_write,
)
QWEN3_MOE = Architecture(
    "qwen3_moe", ("qwen3_moe",), ("Qwen3MoeForCausalLM",), rules, FORM.read_config, FORM.write_config
)
