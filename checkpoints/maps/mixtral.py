"""Mixtral: Mistral with experts in place of every MLP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from checkpoints.maps import experts, mistral
from checkpoints.maps.architecture import Architecture
from checkpoints.maps.config_form import ConfigForm
from checkpoints.rules import Rule
from configs.schema import BackboneConfig

_EXPERT = "block_sparse_moe.experts.{expert}."


def rules(backbone: BackboneConfig) -> list[Rule]:
    names = (_EXPERT + f"{part}.weight" for part in ("w1", "w3", "w2"))
    return experts.rules(backbone, "block_sparse_moe.gate.weight", *names)


def _read(written: Mapping[str, Any]) -> dict[str, Any]:
    own = experts.read(written, count=("num_local_experts",), ffn="intermediate_size", normalised=True)
    return mistral.read_window({"sliding_window": None, **written}) | own


def _write(backbone: BackboneConfig) -> dict[str, Any]:
    own = experts.of(backbone)
    return {"num_local_experts": own.count, "num_experts_per_tok": own.top_k, "sliding_window": None}


FORM = ConfigForm(
    "mixtral",
    "MixtralForCausalLM",
    "mixtral",
    defaults={"tie_word_embeddings": False, "rms_norm_eps": 1e-5, "max_position_embeddings": 131072},
    fixed={"hidden_act": "silu", "router_jitter_noise": 0.0},
    read=_read,
    write=_write,
)
MIXTRAL = Architecture("mixtral", ("mixtral",), ("MixtralForCausalLM",), rules, FORM.read_config, FORM.write_config)
