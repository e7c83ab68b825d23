"""The engines there are, by the name in `engine.name`; each is imported where it is chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch

from configs.checks.ppo import PPO
from configs.schema import Config
from train.engines.protocol import Engine, Objective

Build = Callable[[Config, int, Objective, torch.device], Engine]


def engine_of(config: Config) -> Build:
    """What builds the engine that the config names, imported."""
    if config.engine.name == "deepspeed":
        from train.engines import deepspeed, deepspeed_library

        deepspeed_library.load()
        return deepspeed.build
    from train.engines.megatron import MegatronEngine

    return MegatronEngine


def build_engine(config: Config, padded_vocabulary: int, objective: Objective, device: torch.device) -> Engine:
    """The engine that the config names, for this rank; process groups exist before (`process_groups.join`). Under
    stage.objective=ppo it is four of them."""
    build = engine_of(config)
    if config.stage.objective == PPO:
        from train.engines.actor_critic import ActorCritic

        return ActorCritic(config, padded_vocabulary, cast(Any, objective), device, build)
    return build(config, padded_vocabulary, objective, device)
