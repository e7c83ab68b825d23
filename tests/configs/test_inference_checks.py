"""What runs exported models, in the config: what cannot be is refused in one line that names the key."""

from __future__ import annotations

import pytest

from configs.checks import check
from configs.compose import compose_stage
from configs.schema import Config, InferenceKind
from runtime.exits import BadInput


def stage(name: str, *settings: str, scale: str = "tiny") -> Config:
    return compose_stage("step_audio", scale, name, list(settings))


def test_step_audios_teacher_is_shared_by_the_gpus_of_a_node() -> None:
    config = stage("teacher", scale="paper")
    assert config.inference.engine is InferenceKind.megatron and config.parallel.tensor == 8
    check(config, config.cluster.nodes * 8)
    check(stage("teacher", "inference.engine=megatron", "parallel=tp2_pp2"), 8)


@pytest.mark.parametrize(
    "name, settings, line",
    [
        ("data_engine", (), "inference.engine=megatron asks a teacher .*, and continues no prompts"),
        ("ppo", (), "continues no prompts; give inference.engine=transformers or vllm"),
        ("teacher", ("parallel.context=2",), "parallel.context=2: inference.engine=megatron cannot"),
        ("teacher", ("generation.device=cuda:1",), "generation.device=cuda:1: inference.engine=megatron has"),
        ("teacher", ("inference.tensor_parallel=2",), "engine=megatron shares its model by parallel.tensor"),
        ("teacher", ("inference.engine=vllm",), "does not tell; give inference.engine=transformers, or megatron"),
        ("teacher", ("inference.engine=transformers", "inference.tensor_parallel=2"), "has its model on one device"),
    ],
)
def test_what_cannot_be_is_one_line(name: str, settings: tuple[str, ...], line: str) -> None:
    with pytest.raises(BadInput, match=line):
        engine = () if any(one.startswith("inference.engine=") for one in settings) else ("inference.engine=megatron",)
        check(stage(name, *engine, *settings))


def test_experts_of_a_teacher_are_whole_on_their_ranks() -> None:
    config = stage("teacher", "inference.engine=megatron", "backbone=tiny_experts", "parallel.expert=2")
    with pytest.raises(BadInput, match=r"parallel\.expert=2: inference\.engine=megatron cannot"):
        check(config)
