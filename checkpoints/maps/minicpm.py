"""MiniCPM 1B and 2B: Llama with embedding, residual stream and logits scaled (Hu et al., 2404.06395, section 3).

Published config.json files have no model_type, and weights may be tied. A folder that is written here needs OpenBMB's
own code, or vLLM, to be run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from checkpoints.maps import llama
from checkpoints.maps.architecture import Architecture
from checkpoints.maps.config_form import LLAMA_KEYS, ConfigForm, number
from configs.schema import BackboneConfig
from runtime.exits import BadInput


def _read(written: Mapping[str, Any]) -> dict[str, Any]:
    layers, hidden = number(written, "num_hidden_layers"), number(written, "hidden_size")
    for key, plain in (("mup_denominator", layers), ("num_experts", 0), ("sparse_config", None)):
        if written.get(key) not in (None, plain):  # later models of the family
            raise BadInput(f"config.json: {key}={written[key]!r}; of minicpm only models without it are computed")
    return {
        "embedding_multiplier": number(written, "scale_emb", 1.0),
        "residual_multiplier": number(written, "scale_depth", 1.0) / math.sqrt(layers),
        "logits_divisor": hidden / number(written, "dim_model_base", 1.0),
    }


def _write(backbone: BackboneConfig) -> dict[str, Any]:
    """Scales, rounded to 12 digits: what was divided by a root comes back as it was."""
    depth = backbone.residual_multiplier * math.sqrt(backbone.layers)
    return {
        "scale_emb": float(backbone.embedding_multiplier),
        "scale_depth": float(f"{depth:.12g}"),
        "dim_model_base": float(f"{backbone.hidden / backbone.logits_divisor:.12g}"),
    }


FORM = ConfigForm(
    "minicpm",
    "MiniCPMForCausalLM",
    "minicpm",
    keys={name: key for name, key in LLAMA_KEYS.items() if name != "head_dim"},
    defaults={"tie_word_embeddings": True, "rms_norm_eps": 1e-6},
    fixed={"hidden_act": "silu", "attention_bias": False},
    read=_read,
    write=_write,
)
MINICPM = Architecture(
    "minicpm", ("minicpm",), ("MiniCPMForCausalLM",), llama.rules, FORM.read_config, FORM.write_config
)
