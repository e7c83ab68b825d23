"""Weights of earlier stages, averaged."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class MergeConfig:
    """What a stage of kind merge averages: the newest checkpoints of earlier stages, each times its weight over the sum
    of weights."""

    weights: dict[str, float] = field(default_factory=dict)  # by stage, as in {sft_1: 5, sft_2: 5, dpo: 1}
