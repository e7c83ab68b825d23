"""The engines there are, by the name in `engine.name`; each is imported where it is chosen."""

from __future__ import annotations

import torch

from configs.schema import Config
from train.engines.protocol import Engine, Objective


def build_engine(config: Config, padded_vocabulary: int, objective: Objective, device: torch.device) -> Engine:
    """The engine that the config names, for this rank; process groups exist before (`process_groups.join`)."""
    if config.engine.name == "deepspeed":
        from train.engines.deepspeed import build

        return build(config, padded_vocabulary, objective, device)
    from train.engines.megatron import MegatronEngine

    return MegatronEngine(config, padded_vocabulary, objective, device)
