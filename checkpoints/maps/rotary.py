"""Rotary positions as config.json describes them: `rope_parameters` of today's files, `rope_theta` and `rope_scaling`
of older ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from configs.schema import BackboneConfig, RopeScaling, RopeScalingKind
from runtime.exits import BadInput

_BASE = 10000.0  # where config.json names none
_NAMES = {
    "factor": "factor",
    "original_max_position_embeddings": "original_positions",
    "low_freq_factor": "low_frequency_factor",
    "high_freq_factor": "high_frequency_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "attention_factor": "attention_factor",
}
_OF_KIND = {
    RopeScalingKind.linear: ("factor",),
    RopeScalingKind.llama3: (
        "factor",
        "original_max_position_embeddings",
        "low_freq_factor",
        "high_freq_factor",
    ),
    RopeScalingKind.yarn: (
        "factor",
        "original_max_position_embeddings",
        "beta_fast",
        "beta_slow",
        "attention_factor",
    ),
}
_OPTIONAL = ("beta_fast", "beta_slow", "attention_factor")
# Named by files without a say in these kinds, or with the one value that is computed here.
_IGNORED: Mapping[str, Any] = {"truncate": True, "finetuned": None}


def read(written: Mapping[str, Any], share: float | None = None) -> dict[str, Any]:
    """Fields of BackboneConfig about rotary positions. `share`: of a head's dimensions that rotate, where config.json
    does not say; None: always all. Raises BadInput for what is not computed here."""
    rope = written.get("rope_parameters") or written.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise BadInput(f"config.json: rope_scaling={rope!r} is no object")
    base = rope.get("rope_theta") or written.get("rope_theta") or _BASE
    given = rope.get("partial_rotary_factor") or written.get("partial_rotary_factor")
    if share is None and given not in (None, 1.0):
        raise BadInput(f"config.json: partial_rotary_factor={given!r}; here these heads rotate as a whole")
    return {
        "rope_base": _number("rope_theta", base),
        "rope_scaling": _read_scaling(rope, written),
        "rope_share": _number("partial_rotary_factor", given or share or 1.0),
    }


def write(backbone: BackboneConfig, partial: bool = False) -> dict[str, Any]:
    """Keys of config.json about rotary positions, for old and new readers; `partial`: the share that rotates too."""
    base = float(backbone.rope_base)
    share = {"partial_rotary_factor": float(backbone.rope_share)} if partial else {}
    parameters = {"rope_theta": base, **share, **_write_scaling(backbone.rope_scaling)}
    return {"rope_theta": base, **share, "rope_parameters": parameters}


def _read_scaling(rope: Mapping[str, Any], written: Mapping[str, Any]) -> RopeScaling | None:
    named = rope.get("rope_type") or rope.get("type") or "default"
    if named == "default":
        return None
    if named not in RopeScalingKind.__members__:
        raise BadInput(
            f"config.json: rope_type={named!r}; computed are default, {', '.join(RopeScalingKind.__members__)}"
        )
    kind = RopeScalingKind[named]
    keys = _OF_KIND[kind]
    for key, value in rope.items():
        known = (*_OF_KIND[RopeScalingKind.llama3], *_OF_KIND[RopeScalingKind.yarn], "rope_theta", "rope_type", "type")
        if key not in known and key != "partial_rotary_factor" and value != _IGNORED.get(key):
            raise BadInput(f"config.json: {key}={value!r} of rope_type {named} is not computed here")
    given = {key: rope[key] for key in keys if rope.get(key) is not None}
    if "original_max_position_embeddings" in keys:
        given.setdefault("original_max_position_embeddings", written.get("max_position_embeddings"))
    fields: dict[str, Any] = {}
    for key in keys:
        if key in given:
            value = _number(key, given[key])
            fields[_NAMES[key]] = int(value) if key == "original_max_position_embeddings" else value
        elif key not in _OPTIONAL:
            raise BadInput(f"config.json: rope_type {named} without {key}")
    return RopeScaling(kind, **fields)


def _write_scaling(scaling: RopeScaling | None) -> dict[str, Any]:
    if scaling is None:
        return {"rope_type": "default"}
    values = {key: getattr(scaling, _NAMES[key]) for key in _OF_KIND[scaling.kind]}
    return {
        "rope_type": scaling.kind.value,
        **{
            key: value if isinstance(value, int) and key.startswith("original") else float(value)
            for key, value in values.items()
            if value is not None
        },
    }


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise BadInput(f"config.json: {key}={value!r} is no number above 0")
    return float(value)
