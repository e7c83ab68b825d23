"""What an architecture is to conversions: names of tensors and keys of config.json, each with a native counterpart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from checkpoints.rules import Rule
from configs.schema import BackboneConfig


@dataclass(frozen=True)
class Architecture:
    """One published form of a text LLM.

    name: what `BackboneConfig.architecture` says. model_types: what config.json says, of those that are read as this
    form. classes: what it lists as `architectures`, which counts where it has no model_type. rules: the rules of a
    backbone that has this form (`maps.of_backbone` makes sure of that). read_config: the backbone that a config.json
    describes; what config.json does not say (name, tokenizer, weights) is empty. Raises BadInput for a model that is
    computed otherwise than by the fields of BackboneConfig. write_config: config.json of a backbone, but for its
    vocabulary. vocabulary_key: what config.json calls the rows of the embedding. buffers: endings of names that files
    may hold beside parameters and that are computed here.
    """

    name: str
    model_types: tuple[str, ...]
    classes: tuple[str, ...]
    rules: Callable[[BackboneConfig], list[Rule]]
    read_config: Callable[[Mapping[str, Any]], BackboneConfig]
    write_config: Callable[[BackboneConfig], dict[str, Any]]
    vocabulary_key: str = "vocab_size"
    buffers: tuple[str, ...] = ("rotary_emb.inv_freq",)
