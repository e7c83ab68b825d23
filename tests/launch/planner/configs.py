"""Configs for tests of the planner."""

from __future__ import annotations

from typing import Any

from configs.compose import compose_stage
from configs.schema import Config

ROWS = 74752


def step_audio(*overrides: str) -> Config:
    """The 130B's last stage at the paper's scale, on 1,024 GPUs."""
    return compose_stage("step_audio", "paper", "cooldown", list(overrides))


def tiny(backbone: str = "tiny", **parallel: Any) -> Config:
    """A small model in bf16."""
    words = [f"parallel.{key}={value}" for key, value in parallel.items()]
    return compose_stage(
        "quickstart",
        "tiny",
        None,
        [f"backbone={backbone}", "parallel=single", "train.precision=bf16", "train.deterministic=false", *words],
    )
