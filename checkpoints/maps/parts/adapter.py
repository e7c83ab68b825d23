"""What turns an encoder's vectors into the LLM's: one linear layer (Qwen2-Audio) or two (Voxtral, LLaVA's form).

`train.models.inputs.adapter` computes two, LLaMA-Omni's and MiniCPM-o's way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from checkpoints.maps.parts.part import Part, Placed
from checkpoints.rules import COPY, Rule

_NAMES = tuple(f"{layer}.{kind}" for layer in ("linear", "linear_1", "linear_2") for kind in ("weight", "bias"))


def _placed(config_json: Mapping[str, Any], prefix: str) -> list[Placed]:
    return [Placed(Rule(f"adapter.{name}", (prefix + name,), COPY), optional=True) for name in _NAMES]


ADAPTER = Part("adapter", ("multi_modal_projector.", "model.multi_modal_projector."), _placed)
