"""Which tensors of a published architecture make which native tensor: one file an architecture, data more than code."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from checkpoints.maps.architecture import Architecture
from checkpoints.maps.chatglm import CHATGLM
from checkpoints.maps.glm import GLM
from checkpoints.maps.granite import GRANITE
from checkpoints.maps.llama import LLAMA
from checkpoints.maps.minicpm import MINICPM
from checkpoints.maps.mistral import MISTRAL
from checkpoints.maps.mixtral import MIXTRAL
from checkpoints.maps.qwen2 import QWEN2
from checkpoints.maps.qwen3 import QWEN3
from checkpoints.maps.qwen3_moe import QWEN3_MOE
from checkpoints.maps.step1 import STEP1
from checkpoints.rules import head_dim
from configs.schema import BackboneConfig, Config, ExpertsConfig, RopeScaling
from runtime.exits import BadInput

ARCHITECTURES: tuple[Architecture, ...] = (
    *(LLAMA, MISTRAL, QWEN2, QWEN3, GLM, CHATGLM, STEP1, MINICPM, GRANITE),
    *(MIXTRAL, QWEN3_MOE),
)
"""All that are known; a new one is a file here and its name in this tuple."""

# Fields of BackboneConfig that are no part of what is computed with given weights over given positions.
_FREE = ("name", "architecture", "tokenizer", "weights", "max_positions", "init_std")
_FREE_OF_EXPERTS = ("balance", "z")


def named(architecture: str) -> Architecture:
    """The architecture of a name. Raises BadInput for one that is not known."""
    for known in ARCHITECTURES:
        if known.name == architecture:
            return known
    names = ", ".join(known.name for known in ARCHITECTURES)
    raise BadInput(f"backbone.architecture={architecture}: not one of {names}")


def of_backbone(backbone: BackboneConfig) -> Architecture:
    """The architecture that `backbone.architecture` names. Raises BadInput for one that is not known, or that has no
    such backbone: whatever its config.json cannot say would be lost on the way."""
    architecture = named(backbone.architecture)
    kept = architecture.read_config(architecture.write_config(backbone))
    for name, there, here in _unequal(kept, backbone):
        raise BadInput(f"backbone.{name}={_shown(here)}: architecture {architecture.name} has {_shown(there)} only")
    return architecture


def of_config(config_json: Mapping[str, Any]) -> Architecture:
    """The architecture that a config.json names by its model_type, or by its class where it has none. Raises BadInput
    for one that is not known."""
    model_type, classes = config_json.get("model_type"), config_json.get("architectures") or ()
    for known in ARCHITECTURES:
        if model_type in known.model_types or (model_type is None and set(classes) & set(known.classes)):
            return known
    names = ", ".join(name for known in ARCHITECTURES for name in known.model_types)
    raise BadInput(f"config.json: model_type={model_type!r} is not known here; known are {names}")


def differences(backbone: BackboneConfig, config_json: Mapping[str, Any]) -> list[str]:
    """Where a config.json describes another model than this backbone, one "field: theirs, ours" each.

    The names of its tensors may be another architecture's. Raises BadInput where it describes a model that is not
    computed here.
    """
    theirs = of_config(config_json).read_config(config_json)
    return [
        f"{name}: {_shown(there)} there, {_shown(here)} in backbone.{backbone.name}"
        for name, there, here in _unequal(theirs, backbone)
    ]


def check_architecture(config: Config) -> None:
    """Raise BadInput for an architecture that is not known, or, where weights are read or exported in its form, for a
    backbone that it does not have."""
    named(config.backbone.architecture)
    for wanted, key in ((config.export.huggingface, "export.huggingface=true"), (config.backbone.weights, "weights")):
        if wanted:
            try:
                of_backbone(config.backbone)
            except BadInput as error:
                way_out = "set it to false" if key.startswith("export") else "give the backbone that they are of"
                raise BadInput(f"{key}: {error}; {way_out}") from error


def describe(backbone: BackboneConfig) -> dict[str, Any]:
    """The backbone as JSON can hold it, for a manifest."""
    described = OmegaConf.to_container(OmegaConf.structured(backbone), enum_to_str=True)
    assert isinstance(described, dict)
    return {str(key): value for key, value in described.items()}


def described(plain: Mapping[str, Any]) -> BackboneConfig:
    """The backbone that `describe` described. Raises BadInput where it is none."""
    try:
        backbone = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(BackboneConfig), dict(plain)))
    except OmegaConfBaseException as error:
        raise BadInput(f"the manifest's backbone is none of this version: {str(error).splitlines()[0]}") from error
    assert isinstance(backbone, BackboneConfig)
    return backbone


# --- comparing ------------------------------------------------------------------------------------------------------


def _unequal(theirs: BackboneConfig, ours: BackboneConfig) -> list[tuple[str, Any, Any]]:
    """Names and values of fields that differ, those of `rope_scaling` and of `experts` among them."""
    found: list[tuple[str, Any, Any]] = []
    for field in fields(BackboneConfig):
        there, here = getattr(theirs, field.name), getattr(ours, field.name)
        if field.name == "head_dim":
            there, here = head_dim(theirs), head_dim(ours)
        if field.name == "attention_scale":
            there, here = (one.attention_scale or head_dim(one) ** -0.5 for one in (theirs, ours))
        if field.name in _FREE or _same(there, here):
            continue
        if parts := _parts(there, here):
            found += [(f"{field.name}.{name}", *values) for name, *values in parts if not _same(*values)]
        else:
            found.append((field.name, there, here))
    return found


def _same(theirs: Any, ours: Any) -> bool:
    """Equal, numbers to fp32's precision: some formats store them so."""
    if parts := _parts(theirs, ours):
        return all(_same(there, here) for _, there, here in parts)
    if isinstance(theirs, float) and isinstance(ours, int | float):
        return math.isclose(theirs, ours, rel_tol=1e-6)
    return bool(theirs == ours)


def _parts(theirs: Any, ours: Any) -> list[tuple[str, Any, Any]]:
    """Fields of two values that have some that count, in pairs."""
    for kind in (RopeScaling, ExpertsConfig):
        if isinstance(theirs, kind) and isinstance(ours, kind):
            names = [field.name for field in fields(kind) if field.name not in _FREE_OF_EXPERTS]
            return [(name, getattr(theirs, name), getattr(ours, name)) for name in names]
    return []


def _shown(value: Any) -> str:
    if isinstance(value, ExpertsConfig):
        return f"{value.count} of {value.ffn}"
    if isinstance(value, RopeScaling):
        return f"{value.kind.value} x{value.factor:g}"
    return str(getattr(value, "value", value))
