"""The encoder of FunASR's SenseVoice-small and Paraformer, by itself or inside of a model that listens with it.

`train.models.inputs.sanm` computes and trains it. Of FunASR's configuration, `encoder_conf` says how many blocks there
are; Paraformer's has no `tp_blocks` and no norm behind them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from checkpoints.maps.config_form import whole
from checkpoints.maps.parts.part import Part, Placed
from checkpoints.rules import COPY, LAYER, Rule

_NATIVE = "encoder."
_BLOCK = (
    *(
        f"{part}.{kind}"
        for part in ("norm1", "norm2", "self_attn.linear_q_k_v", "self_attn.linear_out")
        for kind in ("weight", "bias")
    ),
    "self_attn.fsmn_block.weight",
    *(f"feed_forward.{part}.{kind}" for part in ("w_1", "w_2") for kind in ("weight", "bias")),
)


def _placed(config: Mapping[str, Any], prefix: str) -> list[Placed]:
    settings = config.get("encoder_conf") or config
    stacks = {"encoders": whole(settings, "num_blocks") - 1}
    single = [*(f"encoders0.0.{name}" for name in _BLOCK), "after_norm.weight", "after_norm.bias"]
    if "tp_blocks" in settings:
        stacks["tp_encoders"] = whole(settings, "tp_blocks")
        single += ["tp_norm.weight", "tp_norm.bias"]
    return [
        *(Placed(Rule(_NATIVE + name, (prefix + name,), COPY)) for name in single),
        *(
            Placed(Rule(f"{_NATIVE}{stack}.{name}", (f"{prefix}{stack}.{LAYER}.{name}",), COPY), layers)
            for stack, layers in stacks.items()
            for name in (_BLOCK if layers else ())
        ),
    ]


SANM_ENCODER = Part("SANM encoder", ("encoder.",), _placed)
