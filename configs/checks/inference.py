"""What runs exported models: values that cannot work, refused in one line."""

from __future__ import annotations

from configs.checks.ppo import PPO
from configs.schema import Config, InferenceKind, Made, StageKind
from runtime.exits import BadInput


def check_inference(config: Config) -> None:
    inference = config.inference
    if not 0 < inference.memory_share <= 1:
        raise BadInput(f"inference.memory_share={inference.memory_share}: has to be above 0 and at most 1")
    if inference.tensor_parallel < 1:
        raise BadInput(f"inference.tensor_parallel={inference.tensor_parallel}: has to be at least 1")
    if inference.tensor_parallel > 1 and inference.engine is not InferenceKind.vllm:
        why = (
            "has its model on one device; give inference.engine=vllm"
            if inference.engine is InferenceKind.transformers
            else "shares its model by parallel.tensor"
        )
        raise BadInput(
            f"inference.tensor_parallel={inference.tensor_parallel}: inference.engine={inference.engine.value} {why}"
        )
    asks = config.stage.kind is StageKind.generate and config.generation.makes is Made.teacher
    if inference.engine is InferenceKind.vllm and asks:
        raise BadInput(
            "inference.engine=vllm: generation.makes=teacher asks for the likeliest tokens of each table, which it "
            "does not tell; give inference.engine=transformers, or megatron for a model of several devices"
        )
    if inference.engine is InferenceKind.megatron:
        _check_megatron(config, asks=asks)


def _check_megatron(config: Config, *, asks: bool) -> None:
    """`asks`: the stage asks a teacher."""
    if (config.stage.kind is StageKind.generate and not asks) or config.stage.objective == PPO:
        raise BadInput(
            "inference.engine=megatron asks a teacher (generation.makes=teacher), and continues no prompts; give "
            "inference.engine=transformers or vllm"
        )
    if not asks:
        return
    for key in ("context", "expert"):
        if (size := getattr(config.parallel, key)) > 1:
            raise BadInput(
                f"parallel.{key}={size}: inference.engine=megatron cannot; a teacher is shared by parallel.tensor and "
                "parallel.pipeline"
            )
    if config.generation.device is not None:
        raise BadInput(
            f"generation.device={config.generation.device}: inference.engine=megatron has each rank's own GPU, or the "
            "CPU where there is none; say null"
        )
