"""Seconds of chunks: what is frozen, cut up or computed again shows in them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from configs.schema import Config, LoraConfig, Recompute, StageConfig
from launch.planner.attached import Attached, Encoder, Heads
from launch.planner.costs import ChunkCosts, chunk_costs
from launch.planner.hardware import GPUS, HOPPER, MEGAPHONE
from launch.planner.schedule import simulate
from launch.planner.step import pipeline_seconds, step_seconds
from launch.planner.times import Setting
from launch.planner.work import flops_per_token, model_work
from tests.launch.planner.configs import ROWS, step_audio
from train.flops import step_flops

H100 = GPUS["h100"]


def costs(config: Config, ranks: int = 1024, attached: Attached | None = None) -> ChunkCosts:
    return chunk_costs(config, ROWS, ranks, H100, attached=attached or Attached())


def with_parallel(config: Config, **changed: object) -> Config:
    return replace(config, parallel=replace(config.parallel, **changed))  # type: ignore[arg-type]


def with_stage(config: Config, **changed: object) -> Config:
    return replace(config, stage=replace(config.stage, **changed))  # type: ignore[arg-type]


def test_flops_are_those_of_the_report() -> None:
    config = step_audio()
    length = config.train.sequence_length
    reported = step_flops(config.backbone, ROWS, length, length * (length + 1) / 2)
    assert flops_per_token(model_work(config, ROWS)) * length == pytest.approx(reported.model)


def test_a_step_takes_no_less_than_its_flops_at_what_products_reach() -> None:
    config = step_audio()
    flops = flops_per_token(model_work(config, ROWS)) * config.train.global_batch * config.train.sequence_length
    seconds = step_seconds(costs(config))
    assert flops / (1024 * H100.peak * HOPPER.matmul) < seconds < 3 * flops / (1024 * H100.peak * HOPPER.matmul)


def test_recompute_takes_a_forward_pass_more() -> None:
    plain, again = costs(step_audio()), costs(with_parallel(step_audio(), recompute=Recompute.full))
    added = [after - before for after, before in zip(again.backward, plain.backward, strict=True)]
    assert added[:-1] == pytest.approx(plain.forward[:-1])
    assert again.forward == plain.forward


def test_selective_recompute_takes_less_than_full() -> None:
    def backward(**changed: object) -> float:
        return sum(costs(with_parallel(step_audio(), **changed)).backward)

    norms = backward(recompute=Recompute.selective, recompute_modules=["layernorm"])
    mlps = backward(recompute=Recompute.selective, recompute_modules=["layernorm", "mlp"])
    assert backward() < norms < mlps < backward(recompute=Recompute.full)


def test_frozen_layers_pass_nothing_back() -> None:
    config = with_stage(step_audio(), trainable=["output_layer.weight"])
    head_only, everything = costs(config), costs(step_audio())
    assert head_only.forward == everything.forward
    assert head_only.backward[:-1] == [0.0] * 31
    assert 0 < head_only.backward[-1] < everything.backward[-1]
    assert head_only.gradients < everything.gradients
    assert head_only.optimizer < everything.optimizer


def test_low_rank_updates_spare_weights_gradients() -> None:
    config = with_stage(step_audio(), lora=LoraConfig(rank=16))
    assert isinstance(config.stage, StageConfig)
    adapted, everything = costs(config), costs(step_audio())
    middle = slice(1, -1)
    for lora, full in zip(adapted.backward[middle], everything.backward[middle], strict=True):
        assert 0.45 * full < lora < 0.8 * full
    assert adapted.parameters < 0.05 * everything.parameters


def test_closed_form_agrees_with_the_played_schedule() -> None:
    for pipeline, chunks, layout in (
        (8, 4, "auto"),
        (8, 11, None),
        (8, None, None),
        (4, None, "auto"),
        (16, 2, "auto"),
    ):
        config = with_parallel(
            step_audio(), pipeline=pipeline, virtual_pipeline=chunks, pipeline_layout=layout, data=None
        )
        found = costs(config)
        played = simulate(found.schedule()).pipeline
        assert pipeline_seconds(found) == pytest.approx(played, rel=0.03), (pipeline, chunks, layout)


def test_an_encoder_slows_the_first_stage_and_heads_the_last() -> None:
    plain = costs(step_audio())
    encoder = Encoder(layers=32, hidden=1280, ffn=5120, clips=4)
    heads = Heads(layers=4, hidden=1024, ffn=2816, codebooks=7, rows=2048)
    both = costs(step_audio(), attached=Attached(encoder, heads))
    assert both.forward[0] > plain.forward[0]
    assert both.backward[0] == plain.backward[0]  # frozen
    assert both.forward[1:-1] == plain.forward[1:-1]
    assert both.forward[-1] > plain.forward[-1]
    trained = costs(step_audio(), attached=Attached(replace(encoder, trained=True)))
    assert trained.backward[0] - plain.backward[0] == pytest.approx(2 * (trained.forward[0] - plain.forward[0]))


def test_a_group_of_several_ranks_a_node_has_all_their_network_cards() -> None:
    setting = Setting.of(step_audio(), H100, MEGAPHONE)
    assert setting.link(8) == H100.nvlink * HOPPER.nvlink
    assert setting.link(16, inner=8) == H100.network * HOPPER.network
    assert setting.link(64, inner=2) == 4 * H100.network * HOPPER.network
