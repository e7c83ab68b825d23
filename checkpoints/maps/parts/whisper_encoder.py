"""Whisper's encoder, by itself or inside of a model that listens with it (Whisper, Qwen2-Audio, Voxtral).

`train.models.inputs.whisper` computes and trains it; models differ in how they pool, mask and normalise what it gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from checkpoints.maps.config_form import whole
from checkpoints.maps.parts.part import Part, Placed
from checkpoints.rules import COPY, LAYER, Rule

_NATIVE = "encoder."
_SINGLE = (
    *("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"),
    *("embed_positions.weight", "layer_norm.weight", "layer_norm.bias"),
)
_LAYERED = (
    *(f"self_attn.{part}_proj.{kind}" for part in ("q", "v", "out") for kind in ("weight", "bias")),
    "self_attn.k_proj.weight",  # the one without a bias
    *(
        f"{part}.{kind}"
        for part in ("self_attn_layer_norm", "fc1", "fc2", "final_layer_norm")
        for kind in ("weight", "bias")
    ),
)


def _placed(config_json: Mapping[str, Any], prefix: str) -> list[Placed]:
    settings = config_json.get("audio_config") or config_json
    layers = whole(settings, "encoder_layers" if "encoder_layers" in settings else "num_hidden_layers")
    return [
        *(Placed(Rule(_NATIVE + name, (prefix + name,), COPY)) for name in _SINGLE),
        *(
            Placed(Rule(f"{_NATIVE}layers.{name}", (f"{prefix}layers.{LAYER}.{name}",), COPY), layers)
            for name in _LAYERED
        ),
    ]


WHISPER_ENCODER = Part("Whisper encoder", ("model.encoder.", "encoder.", "model.audio_tower.", "audio_tower."), _placed)
