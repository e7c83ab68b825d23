"""Mistral: Llama under another name. Its sliding window is refused unless it never bites."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from checkpoints.maps import llama
from checkpoints.maps.architecture import Architecture
from checkpoints.maps.config_form import ConfigForm, number
from runtime.exits import BadInput


def read_window(written: Mapping[str, Any]) -> dict[str, Any]:
    """Raises BadInput for a window that is shorter than the positions; transformers' default is one of 4096."""
    if written.get("sliding_window", 4096) is None:
        return {}
    window = number(written, "sliding_window", 4096)
    longest = number(written, "max_position_embeddings", 131072)
    if window < longest:
        raise BadInput(
            f"config.json: sliding_window={window:.0f} is below max_position_embeddings={longest:.0f}, and attention "
            f"here sees all that came before; for samples of at most {window:.0f} tokens set the latter to that"
        )
    return {}


FORM = ConfigForm(
    "mistral",
    "MistralForCausalLM",
    "mistral",
    defaults={"tie_word_embeddings": False, "rms_norm_eps": 1e-6, "max_position_embeddings": 131072},
    fixed={"hidden_act": "silu"},
    read=read_window,
    write=lambda backbone: {"sliding_window": None},
)
MISTRAL = Architecture(
    "mistral", ("mistral",), ("MistralForCausalLM",), llama.rules, FORM.read_config, FORM.write_config
)
