"""One output matrix for each codebook, as models of delayed codebooks have them (MusicGen): [codebooks, ids, hidden].

Weights alone. The module that computes them comes later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from checkpoints.maps.config_form import whole
from checkpoints.maps.parts.part import Part, Placed
from checkpoints.rules import COPY, LAYER, Rule


def _placed(config_json: Mapping[str, Any], prefix: str) -> list[Placed]:
    settings = config_json.get("decoder") or config_json
    return [
        Placed(Rule("heads.codebooks.weight", (f"{prefix}{LAYER}.weight",), COPY), whole(settings, "num_codebooks"))
    ]


CODEC_HEADS = Part("codec heads", ("lm_heads.", "decoder.lm_heads."), _placed)
