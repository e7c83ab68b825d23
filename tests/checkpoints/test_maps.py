"""Architectures by name and by config.json, and what each refuses in one line."""

from __future__ import annotations

from typing import Any

import pytest

from checkpoints.maps import check_architecture, describe, described, of_backbone, of_config
from configs.compose import compose_stage
from configs.schema import Positions, RopeScaling, RopeScalingKind
from runtime.exits import BadInput
from tests.checkpoints.models import backbone
from tests.configs.recipes import write_recipe


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architecture": "lama"}, "backbone.architecture=lama: not one of llama, "),
        ({"qkv_bias": True}, "backbone.qkv_bias=True: architecture llama has False only"),
        ({"architecture": "qwen2"}, "backbone.qkv_bias=False: architecture qwen2 has True only"),
        ({"qk_norm": True}, "backbone.qk_norm=True: architecture llama has False only"),
        ({"positions": Positions.sqrt_alibi}, "backbone.positions=sqrt_alibi: architecture llama has rope only"),
    ],
)
def test_a_backbone_that_its_architecture_does_not_have_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as raised:
        of_backbone(backbone(**changes))
    assert str(raised.value).startswith(said) and "\n" not in str(raised.value)


def test_an_unknown_model_type_is_refused_with_those_known() -> None:
    with pytest.raises(BadInput, match="model_type='mamba' is not known here; known are llama, "):
        of_config({"model_type": "mamba"})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["backbone.architecture=lama"], "backbone.architecture=lama: not one of"),
        (
            ["backbone.qk_norm=true"],
            "export.huggingface=true: backbone.qk_norm=True: architecture llama has False only",
        ),
        (["backbone.qk_norm=true", "backbone.weights=x", "export.huggingface=false"], "weights: backbone.qk_norm=True"),
        (["backbone.qk_norm=true", "export.huggingface=false"], None),
    ],
)
def test_contradictions_matter_where_a_form_is_read_or_written(
    tmp_path_factory: pytest.TempPathFactory, settings: list[str], said: str | None
) -> None:
    recipe = write_recipe(tmp_path_factory.mktemp("recipe"))
    config = compose_stage(recipe, "tiny", "pretrain", settings)
    if said is None:
        check_architecture(config)
        return
    with pytest.raises(BadInput) as raised:
        check_architecture(config)
    assert said in str(raised.value)


def test_a_described_backbone_is_read_again() -> None:
    of = backbone(rope_scaling=RopeScaling(RopeScalingKind.llama3, 8.0, 8192), positions=Positions.rope)
    assert described(describe(of)) == of
    with pytest.raises(BadInput, match="none of this version"):
        described({"wheels": 4})
