"""Attention and positions: what cannot work, refused in one line."""

from __future__ import annotations

from configs.schema import AttentionKernel, BackboneConfig, Config, Positions, Precision, RopeScalingKind
from runtime.exits import BadInput


def check_attention(config: Config) -> None:
    backbone = config.backbone
    head_dim = backbone.head_dim or backbone.hidden // backbone.heads
    if backbone.positions is Positions.rope and head_dim % 2:
        raise BadInput(f"a head has {head_dim} dimensions; rotary positions need an even number")
    _check_rotated(backbone, head_dim)
    _check_scaling(backbone)
    kernel = config.train.attention
    if kernel in (AttentionKernel.varlen, AttentionKernel.te):
        if backbone.positions is Positions.sqrt_alibi:
            raise BadInput(f"train.attention={kernel.value} cannot add the bias of backbone.positions=sqrt_alibi")
        if config.train.precision is not Precision.bf16:
            raise BadInput(f"train.attention={kernel.value} needs train.precision=bf16")


def _check_rotated(backbone: BackboneConfig, head_dim: int) -> None:
    if backbone.positions is not Positions.rope:
        if backbone.rope_share != 1.0 or backbone.rope_interleaved:
            raise BadInput(
                "backbone.rope_share and rope_interleaved are of positions=rope, "
                f"not of positions={backbone.positions.value}"
            )
        return
    rotated = backbone.rope_share * head_dim
    if not 0 < rotated <= head_dim or rotated % 2:
        raise BadInput(
            f"backbone.rope_share={backbone.rope_share} of a head's {head_dim} dimensions is no even number of them"
        )


def _check_scaling(backbone: BackboneConfig) -> None:
    scaling = backbone.rope_scaling
    if scaling is None:
        return
    if backbone.positions is not Positions.rope:
        raise BadInput(f"backbone.rope_scaling is of positions=rope, not of positions={backbone.positions.value}")
    if scaling.factor < 1:
        raise BadInput(f"backbone.rope_scaling.factor={scaling.factor}: has to be 1 or above")
    if scaling.kind is RopeScalingKind.linear:
        return
    if scaling.original_positions is None or scaling.original_positions < 1:
        raise BadInput(
            f"backbone.rope_scaling.original_positions={scaling.original_positions}: kind {scaling.kind.value} "
            "needs the positions that the model was trained on first"
        )
    for low, high in (("low_frequency_factor", "high_frequency_factor"), ("beta_slow", "beta_fast")):
        if not 0 < getattr(scaling, low) < getattr(scaling, high):
            raise BadInput(f"backbone.rope_scaling: {low} has to be above 0 and below {high}")
    if scaling.attention_factor is not None and scaling.attention_factor <= 0:
        raise BadInput(f"backbone.rope_scaling.attention_factor={scaling.attention_factor}: has to be above 0, or null")
