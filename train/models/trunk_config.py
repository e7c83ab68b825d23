"""Megatron's configuration of a transformer, with what our own attention has to know beside it."""

from __future__ import annotations

from dataclasses import dataclass

from megatron.core.transformer import TransformerConfig

from configs.schema import AttentionKernel, ExpertsConfig, Positions, RopeScaling


@dataclass
class TrunkConfig(TransformerConfig):
    """positions, rope_base, rope_scaling, experts: as in `BackboneConfig`. kernel: which one computes attention, never
    auto. row_packs: most packs that a row holds whose routing is counted. grouped_experts: one product for all experts.
    """

    positions: Positions = Positions.rope
    rope_base: float = 10000.0
    rope_scaling: RopeScaling | None = None
    kernel: AttentionKernel = AttentionKernel.sdpa
    experts: ExpertsConfig | None = None
    row_packs: int = 1
    grouped_experts: bool = False
