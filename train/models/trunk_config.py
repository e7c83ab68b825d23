"""Megatron's configuration of a transformer, with what our own attention has to know beside it."""

from __future__ import annotations

from dataclasses import dataclass

from megatron.core.transformer import TransformerConfig

from configs.audio_input import AudioInput
from configs.schema import AttentionKernel, ExpertsConfig, Positions, RopeScaling


@dataclass
class TrunkConfig(TransformerConfig):
    """positions, rope_..., ..._multiplier, logits_divisor, experts: as in `BackboneConfig`. kernel: which one computes
    attention, never auto. row_packs: most packs that a row holds whose routing is counted. grouped_experts: one product
    for all experts. audio_input: what the model hears through beside codes, if through anything. reward: the last stage
    has a reward head, which answers in the place of the language model's."""

    positions: Positions = Positions.rope
    rope_base: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rope_share: float = 1.0
    rope_interleaved: bool = False
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_divisor: float = 1.0
    kernel: AttentionKernel = AttentionKernel.sdpa
    experts: ExpertsConfig | None = None
    row_packs: int = 1
    grouped_experts: bool = False
    audio_input: AudioInput | None = None
    reward: bool = False
