"""How large a stage's checkpoints are, from the config alone."""

from __future__ import annotations

from configs.checks.ppo import PPO
from configs.schema import Config, Precision
from launch.planner.work import learnt

_MOMENTS = 2 * 4  # bytes a parameter: Adam's two, in fp32
_MAIN = 4  # and its fp32 copy, of parameters in bf16


def checkpoint_bytes(held: int, trained: int, precision: Precision) -> int:
    """Bytes of a native checkpoint of so many parameters: of all of them weights, of those that are trained Adam's
    moments and, in bf16, their fp32 copies."""
    if precision is Precision.bf16:
        return 2 * held + (_MOMENTS + _MAIN) * trained
    return 4 * held + _MOMENTS * trained


def of_stage(config: Config, rows: int) -> int:
    """Bytes of each checkpoint of a stage that trains a language model; under PPO with its critic, all of which is
    trained. rows: of the vocabulary, padding included. Raises BadInput where the stage trains nothing."""
    stage = learnt(config, rows)
    held = sum(stage.elements.values())
    trained = sum(size for name, size in stage.elements.items() if stage.trains(name))
    critic = checkpoint_bytes(held, held, config.train.precision) if config.stage.objective == PPO else 0
    return checkpoint_bytes(held, trained, config.train.precision) + critic
