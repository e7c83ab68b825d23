"""Proximal policy optimisation: values that cannot work together, and what is not built, refused in one line."""

from __future__ import annotations

from math import inf

from configs.schema import AudioRows, Config, StageKind
from runtime.exits import BadInput

PPO = "ppo"


def check_ppo(config: Config) -> None:
    ppo, train = config.ppo, config.train
    for name in ("prompts", "epochs", "longest", "batch"):
        if getattr(ppo, name) < 1:
            raise BadInput(f"ppo.{name}={getattr(ppo, name)}: has to be above 0")
    for name in ("kl", "unended", "critic_warmup"):
        if not 0 <= getattr(ppo, name) < inf:
            raise BadInput(f"ppo.{name}={getattr(ppo, name)}: has to be a number, 0 or above")
    for name in ("discount", "trace"):
        if not 0 <= getattr(ppo, name) <= 1:
            raise BadInput(f"ppo.{name}={getattr(ppo, name)}: has to be from 0 to 1")
    if not 0 < ppo.clip < 1:
        raise BadInput(f"ppo.clip={ppo.clip}: has to be between 0 and 1")
    for name in ("clip_value", "critic_lr"):
        value = getattr(ppo, name)
        if value is not None and not 0 < value < inf:
            raise BadInput(f"ppo.{name}={value}: has to be a number above 0, or null")
    if config.stage.objective != PPO or config.stage.kind is not StageKind.train:
        return
    if ppo.reward is None:
        raise BadInput("ppo.reward: stage.objective=ppo needs a reward model; name its stage, as in stage:reward_audio")
    if ppo.prompts % train.global_batch:
        raise BadInput(
            f"ppo.prompts={ppo.prompts} is no multiple of train.global_batch={train.global_batch}, answers a step"
        )
    if ppo.longest >= train.sequence_length:
        raise BadInput(
            f"ppo.longest={ppo.longest} leaves no room for a question in train.sequence_length={train.sequence_length}"
        )
    if ppo.critic_warmup >= train.steps:
        raise BadInput(f"ppo.critic_warmup={ppo.critic_warmup} leaves the policy none of train.steps={train.steps}")
    _check_built(config)


def _check_built(config: Config) -> None:
    stage, parallel = config.stage, config.parallel
    if config.engine.name != "megatron":
        raise BadInput(f"engine.name={config.engine.name}: stage.objective=ppo runs on engine.name=megatron alone")
    if parallel.overlap_gradients or parallel.overlap_parameters:
        raise BadInput(
            "parallel.overlap_gradients and overlap_parameters: the critic of stage.objective=ppo has a head without a "
            "gradient, which they wait for; set both to false"
        )
    for given, option in (
        (stage.lora is not None, "stage.lora"),
        (config.adapter is not None, "adapter"),
        (config.backbone.experts is not None, "backbone.experts"),
        (stage.audio_rows is not AudioRows.drawn, "stage.audio_rows"),
    ):
        if given:
            raise BadInput(f"{option}: not built for stage.objective=ppo; leave it out")
