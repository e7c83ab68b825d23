"""Objectives over pairs of answers: values that cannot work together, refused in one line."""

from __future__ import annotations

from math import inf

from configs.checks.ppo import PPO
from configs.schema import Config
from runtime.exits import BadInput

PAIRS = ("dpo", "reward", PPO)  # objectives whose data are pairs


def check_preference(config: Config) -> None:
    wanted, objective = config.preference, config.stage.objective
    if not 0 < wanted.beta < inf:
        raise BadInput(f"preference.beta={wanted.beta}: has to be a number above 0")
    if not 0 <= wanted.smoothing < 0.5:
        raise BadInput(f"preference.smoothing={wanted.smoothing}: has to be from 0 to below 0.5")
    if not 0 <= wanted.nll < inf:
        raise BadInput(f"preference.nll={wanted.nll}: has to be a number, 0 or above")
    if objective not in PAIRS:
        return
    for name in ("smoothing", "z", "terms"):
        if value := getattr(config.loss, name):
            raise BadInput(f"loss.{name}={value}: stage.objective={objective} knows none; leave it out")
    if config.parallel.context > 1:
        raise BadInput(
            f"parallel.context={config.parallel.context}: stage.objective={objective} compares whole answers, which "
            "context parallelism cuts; set it to 1"
        )
    if objective == "reward":
        _check_reward(config)


def _check_reward(config: Config) -> None:
    if config.parallel.overlap_gradients:
        raise BadInput(
            "parallel.overlap_gradients waits for every parameter's gradient, and with stage.objective=reward the "
            "language model's head has none; set it to false"
        )
    if config.engine.name == "deepspeed" and config.engine.zero_stage == 3:
        raise BadInput("engine.zero_stage=3: the reward head is not cut up; take 0 to 2 for stage.objective=reward")
    if config.engine.name == "deepspeed" and config.parallel.pipeline > 1 and config.backbone.tied_embeddings:
        raise BadInput(
            f"parallel.pipeline={config.parallel.pipeline}: DeepSpeed wants a gradient of the tied head, and with "
            "stage.objective=reward it has none; engine.name=megatron can"
        )
    if config.export.huggingface:
        raise BadInput("export.huggingface: a reward model has no Hugging Face form here; set it to false")
