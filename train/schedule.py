"""Learning rate by step."""

from __future__ import annotations

import math

from configs.checks.ppo import PPO
from configs.schema import Config, OptimizerConfig, Schedule


def rate_of_step(config: Config, step: int) -> float:
    """Rate of a stage's `step`-th step; 0 while a critic warms up, after which the policy's steps are counted."""
    before = config.ppo.critic_warmup if config.stage.objective == PPO else 0
    return learning_rate(config.optimizer, step - before, config.train.steps - before) if step > before else 0.0


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Rate of the `step`-th of `steps` optimiser steps, counted from 1: linear warm-up, then the schedule down to
    `floor * lr` at the last step."""
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    if config.schedule is Schedule.constant:
        return config.lr
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    fall = progress if config.schedule is Schedule.linear else (1 - math.cos(math.pi * min(1.0, progress))) / 2
    return config.lr * (1 - (1 - config.floor) * min(1.0, fall))
