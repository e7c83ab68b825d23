"""Megatron's configuration of a transformer, with what our own attention has to know beside it."""

from __future__ import annotations

from dataclasses import dataclass

from megatron.core.transformer import TransformerConfig

from configs.schema import AttentionKernel, Positions, RopeScaling


@dataclass
class TrunkConfig(TransformerConfig):
    """positions, rope_base, rope_scaling: as in `BackboneConfig`. kernel: which one computes attention, never auto."""

    positions: Positions = Positions.rope
    rope_base: float = 10000.0
    rope_scaling: RopeScaling | None = None
    kernel: AttentionKernel = AttentionKernel.sdpa
