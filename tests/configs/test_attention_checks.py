"""Impossible attention and positions: each is refused in one line that names the keys."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from configs.checks import check
from configs.compose import compose_stage
from configs.schema import AttentionKernel, Config, ExportConfig, Positions, Precision, RopeScaling, RopeScalingKind
from runtime.exits import BadInput
from tests.configs.recipes import write_recipe

ALIBI = {"positions": Positions.sqrt_alibi}
LLAMA3 = RopeScaling(RopeScalingKind.llama3, 8.0, 8192)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Config:
    recipe = write_recipe(tmp_path_factory.mktemp("recipe"))
    config = compose_stage(recipe, "tiny", "pretrain", ["train.steps=100"])
    return replace(config, export=ExportConfig(huggingface=False))


def changed(base: Config, **sections: Any) -> Config:
    return replace(base, **{name: replace(getattr(base, name), **values) for name, values in sections.items()})


def test_scalings_and_kernels_come_from_settings(tmp_path_factory: pytest.TempPathFactory) -> None:
    recipe = write_recipe(tmp_path_factory.mktemp("recipe"))
    config = compose_stage(
        recipe,
        "tiny",
        "pretrain",
        [
            "backbone.rope_scaling={kind: llama3, factor: 8.0, original_positions: 8192}",
            "train.attention=flex",
            "parallel.context=2",
        ],
    )
    check(config)
    assert config.backbone.rope_scaling == LLAMA3
    assert config.train.attention is AttentionKernel.flex


@pytest.mark.parametrize("positions", Positions)
def test_positions_that_are_possible(base: Config, positions: Positions) -> None:
    check(changed(base, backbone={"positions": positions, "qk_norm": True}))
    check(changed(base, backbone={"positions": positions, "head_dim": 64}, parallel={"context": 4}))


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"backbone": {"head_dim": 33}}, "rotary positions need an even number"),
        ({"backbone": {**ALIBI, "rope_scaling": LLAMA3}}, "backbone.rope_scaling is of positions=rope"),
        ({"backbone": {**ALIBI, "rope_share": 0.5}}, "rope_share and rope_interleaved are of positions=rope"),
        ({"backbone": {"rope_share": 0.3}}, "rope_share=0.3 of a head's"),
        ({"backbone": {"rope_share": 1.5}}, "rope_share=1.5 of a head's"),
        ({"backbone": {"residual_multiplier": 0.0}}, "backbone.residual_multiplier=0.0: has to be above 0"),
        ({"backbone": {"attention_scale": -1.0}}, "backbone.attention_scale=-1.0: has to be above 0, or null"),
        ({"backbone": {"rope_scaling": replace(LLAMA3, factor=0.5)}}, "rope_scaling.factor=0.5: has to be 1 or above"),
        (
            {"backbone": {"rope_scaling": replace(LLAMA3, original_positions=None)}},
            "rope_scaling.original_positions=None: kind llama3 needs",
        ),
        (
            {"backbone": {"rope_scaling": replace(LLAMA3, low_frequency_factor=4.0)}},
            "low_frequency_factor has to be above 0 and below high_frequency_factor",
        ),
        (
            {"backbone": {"rope_scaling": RopeScaling(RopeScalingKind.yarn, 4.0, 4096, beta_slow=32.0)}},
            "beta_slow has to be above 0 and below beta_fast",
        ),
        (
            {"backbone": {"rope_scaling": RopeScaling(RopeScalingKind.yarn, 4.0, 4096, attention_factor=0.0)}},
            "attention_factor=0.0: has to be above 0",
        ),
        (
            {"backbone": ALIBI, "train": {"attention": AttentionKernel.varlen, "precision": Precision.bf16}},
            "train.attention=varlen cannot add the bias of backbone.positions=sqrt_alibi",
        ),
        ({"train": {"attention": AttentionKernel.te}}, "train.attention=te needs train.precision=bf16"),
        (
            {
                "parallel": {"context": 2, "tensor": 2, "sequence": True},
                "train": {"sequence_length": 516, "micro_batch": 1},
            },
            None,
        ),
        (
            {
                "parallel": {"context": 2, "tensor": 4, "sequence": True},
                "train": {"sequence_length": 516, "micro_batch": 1},
                "backbone": {"kv_heads": 4},
            },
            "parallel.tensor=4 does not divide train.sequence_length x train.micro_batch / parallel.context = 258",
        ),
    ],
)
def test_impossible_values(base: Config, sections: dict[str, Any], said: str | None) -> None:
    config = changed(base, **sections)
    if said is None:
        check(config)
        return
    with pytest.raises(BadInput) as caught:
        check(config)
    assert said in str(caught.value) and "\n" not in str(caught.value)
