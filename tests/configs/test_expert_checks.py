"""Impossible experts, and topologies that cannot spread them: each is refused in one line that names the keys."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.checks import check
from configs.compose import compose_stage
from configs.pipeline import head_cost
from configs.schema import Config, ExpertKernel, ExportConfig, Precision
from runtime.exits import BadInput
from tests.configs.recipes import write_recipe
from tests.configs.test_attention_checks import changed


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Config:
    recipe = write_recipe(tmp_path_factory.mktemp("recipe"))
    settings = ["train.steps=100", "backbone.experts={count: 8, ffn: 128}"]
    return replace(compose_stage(recipe, "tiny", "pretrain", settings), export=ExportConfig(huggingface=False))


def with_experts(base: Config, **fields: Any) -> Config:
    assert base.backbone.experts is not None
    return changed(base, backbone={"experts": replace(base.backbone.experts, **fields)})


def test_possible_ones(base: Config) -> None:
    check(base, processes=4)
    check(with_experts(base, top_k=1, normalise_top_k=False, dense_first=3))
    check(changed(base, parallel={"expert": 8, "tensor": 2, "sequence": True, "context": 2}), processes=8)
    grouped = {"experts": ExpertKernel.grouped, "precision": Precision.bf16}
    check(changed(base, parallel={"expert": 4, "pipeline": 2}, train=grouped), processes=8)


def test_the_tiny_backbone_with_experts_can_be_exported(tmp_path: Path) -> None:
    settings = ["backbone=tiny_experts", "parallel.expert=4", "train.steps=100"]
    check(compose_stage(write_recipe(tmp_path / "recipe"), "tiny", "pretrain", settings), processes=4)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"count": 0}, "backbone.experts.count=0: has to be above 0"),
        ({"ffn": 0}, "backbone.experts.ffn=0: has to be above 0"),
        ({"balance": -0.1}, "backbone.experts.balance=-0.1: has to be 0 or above"),
        ({"top_k": 9}, "backbone.experts.top_k=9 is above backbone.experts.count=8"),
        ({"top_k": 1}, "normalise_top_k=true with top_k=1: every weight would be 1"),
        ({"dense_first": 4}, "backbone.experts.dense_first=4 leaves none of backbone.layers=4"),
    ],
)
def test_impossible_experts(base: Config, fields: dict[str, Any], said: str) -> None:
    refused(with_experts(base, **fields), said)


@pytest.mark.parametrize(
    ("sections", "processes", "said"),
    [
        ({"parallel": {"expert": 3}}, None, "parallel.expert=3 does not divide backbone.experts.count=8"),
        ({"parallel": {"expert": 4, "pipeline": 2}}, 4, "parallel.expert=4 does not divide the 2 ranks of a pipeline"),
        ({"parallel": {"tensor": 2}}, 2, "backbone.experts with parallel.tensor=2 needs parallel.sequence=true"),
        ({"engine": {"name": "deepspeed"}}, 1, "backbone.experts: engine.name=deepspeed cannot"),
        ({"engine": {"name": "deepspeed"}, "parallel": {"expert": 2}}, 2, "parallel.expert=2: engine.name=deepspeed"),
        ({"backbone": {"experts": None}, "parallel": {"expert": 2}}, 2, "parallel.expert=2 needs backbone.experts"),
        ({"train": {"experts": ExpertKernel.grouped}}, 1, "train.experts=grouped needs train.precision=bf16"),
    ],
)
def test_impossible_spreads(base: Config, sections: dict[str, Any], processes: int | None, said: str) -> None:
    refused(changed(base, **sections), said, processes)


def refused(config: Config, said: str, processes: int | None = None) -> None:
    with pytest.raises(BadInput) as caught:
        check(config, processes)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_pipeline_balanced_by_cost_counts_the_experts_that_a_token_goes_to(base: Config) -> None:
    experts = base.backbone.experts
    assert experts is not None
    dense = replace(base.backbone, experts=None, ffn=experts.top_k * experts.ffn)
    own = replace(base.backbone, experts=replace(experts, count=6))
    projections = 2 * (dense.heads + dense.kv_heads) * (dense.hidden // dense.heads)
    layer = projections + 3 * dense.ffn
    assert head_cost(own, 1000) == pytest.approx(head_cost(dense, 1000) * layer / (layer + 6))
