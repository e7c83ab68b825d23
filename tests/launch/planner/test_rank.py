"""Rankings: what is proposed can be trained and fits, the fastest first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from configs.checks import check
from configs.pipeline import parse_layout
from configs.schema import LoraConfig
from launch.planner.attached import Attached, Encoder, Heads
from launch.planner.hardware import GPUS
from launch.planner.rank import Ranking, propose, rank
from tests.launch.planner.configs import ROWS, step_audio, tiny

H100 = GPUS["h100"]


@pytest.fixture(scope="module")
def found() -> Ranking:
    return rank(step_audio(), 1024, H100, ROWS, headroom=0.1, most=60)


def test_what_is_proposed_can_be_trained(found: Ranking) -> None:
    assert len(found.proposals) == 60
    for proposal in found.proposals:
        check(proposal.config, 1024)


def test_the_fastest_comes_first_and_all_fit(found: Ranking) -> None:
    seconds = [proposal.seconds for proposal in found.proposals]
    assert seconds == sorted(seconds)
    assert max(proposal.fullest.total for proposal in found.proposals) <= 0.9 * H100.memory


def test_the_recipes_own_topology_is_not_faster(found: Ranking) -> None:
    own = propose(step_audio("parallel.data=16"), 1024, H100, ROWS)
    assert found.proposals[0].seconds <= own.seconds
    assert 0.25 < own.mfu < found.proposals[0].mfu


def test_figures_agree_with_each_other(found: Ranking) -> None:
    best = found.proposals[0]
    steps_a_day = 86400 / best.seconds
    assert best.tokens_a_day == pytest.approx(steps_a_day * 1024 * 8192)
    assert best.gpu_hours == pytest.approx(best.config.train.steps / steps_a_day * 24 * 1024)
    assert best.mfu == pytest.approx(best.flops / best.seconds / 1024 / H100.peak)
    assert 0 < best.bubble + best.exposed < 0.5


def test_more_headroom_is_slower(found: Ranking) -> None:
    tight = rank(step_audio(), 1024, H100, ROWS, headroom=0.5, most=1)
    assert tight.proposals[0].fullest.total <= 0.5 * H100.memory
    assert tight.proposals[0].seconds > found.proposals[0].seconds


def test_nothing_fits_where_there_is_too_little_memory() -> None:
    small = rank(step_audio(), 16, H100, ROWS, headroom=0.1)
    assert not small.proposals
    assert small.smallest is not None
    assert small.smallest.fullest.total > H100.memory


def test_an_encoder_takes_layers_from_the_first_stage() -> None:
    attached = Attached(
        Encoder(layers=32, hidden=1280, ffn=5120, clips=8),
        Heads(layers=4, hidden=1024, ffn=2816, codebooks=7, rows=2048, share=0.2),
    )
    ranked = rank(step_audio(), 512, H100, ROWS, headroom=0.1, attached=attached, most=20)
    best = next(one for one in ranked.proposals if one.config.parallel.pipeline_layout)
    stages, ranks = parse_layout(str(best.config.parallel.pipeline_layout)), best.config.parallel.pipeline
    layers = [sum(stage.layers for stage in stages[number::ranks]) for number in range(ranks)]
    assert layers[0] < max(layers)
    assert layers[-1] < max(layers)
    assert best.memory[0].encoder > 0
    assert best.memory[-1].heads > 0
    assert [stage.encoder for stage in best.memory[1:]] == [0.0] * (ranks - 1)


def test_low_rank_updates_need_fewer_gpus() -> None:
    config = tiny("qwen2_5_7b")
    assert not rank(config, 1, H100, 152064, headroom=0.1, most=1).proposals
    config.stage.lora = LoraConfig(rank=16)
    assert rank(config, 1, H100, 152064, headroom=0.1, most=1).proposals


def test_experts_are_dealt_out() -> None:
    config = tiny("tiny_experts")
    config.train = replace(config.train, global_batch=32)
    sizes = {one.config.parallel.expert for one in rank(config, 4, H100, 49536, headroom=0.1, most=100).proposals}
    assert sizes == {1, 2, 4}
