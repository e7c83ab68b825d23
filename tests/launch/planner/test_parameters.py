"""Names and sizes without a model: those that checkpoints know."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from checkpoints.maps import named
from checkpoints.shapes import native_shape
from configs.compose import compose_stage
from configs.schema import AdapterKind, LoraConfig, ParallelConfig
from launch.planner.attached import Attached, Encoder, with_audio_input
from launch.planner.costs import chunk_costs
from launch.planner.hardware import GPUS
from launch.planner.rank import held_by
from launch.planner.work import elements, learnt
from runtime.exits import BadInput
from tests.launch.planner.configs import ROWS, step_audio, tiny
from tests.train.test_hearing_flops import hearing
from train.audio_input import of_audio_input
from train.trainable import without_layer


@pytest.mark.parametrize("backbone", ["tiny", "tiny_experts", "qwen2_5_7b", "qwen3_8b"])
def test_they_are_what_a_checkpoint_holds(backbone: str) -> None:
    config = tiny(backbone)
    found: Counter[str] = Counter()
    for name, size in elements(config, 1024).items():
        found[without_layer(name)] += size
    wanted = {}
    for rule in named(config.backbone.architecture).rules(config.backbone):
        shape = native_shape(rule.native, config.backbone, 1024)
        assert shape is not None
        size = 1
        for length in shape:
            size *= length
        wanted[without_layer(rule.native)] = size * (config.backbone.layers if ".layers." in rule.native else 1)
    assert found == wanted


def test_step_audio_has_as_many_as_published() -> None:
    assert round(sum(elements(step_audio(), ROWS).values()) / 1e9, 3) == 131.947


def test_low_rank_factors_are_counted() -> None:
    config = tiny()
    config.stage.lora = LoraConfig(rank=4, targets=["*.linear_fc1"])
    added = {name: size for name, size in elements(config, 1024).items() if "lora" in name}
    backbone = config.backbone
    each = 4 * (backbone.hidden + 2 * backbone.ffn)
    assert len(added) == 2 * backbone.layers
    assert sum(added.values()) == backbone.layers * each


def test_a_frozen_model_that_learns_to_hear_is_planned() -> None:
    config = hearing(AdapterKind.mlp)
    config.stage.trainable, config.stage.frozen = ["adapter.*"], ["encoder.*"]
    attached = with_audio_input(Attached(), config, learnt(config, 1024).trains)
    assert attached.adapter is not None and attached.adapter.trained
    assert attached.encoder is not None and not attached.encoder.trained
    parallel = ParallelConfig(pipeline=2, data=1)
    first, last = held_by(replace(config, parallel=parallel), 1024, attached)
    assert first.encoder > 0 and last.encoder == 0
    assert first.gradients == last.gradients == 0, "the trunk is frozen"
    costs = chunk_costs(replace(config, parallel=parallel), 1024, 2, GPUS["h100"], attached=attached)
    plain = chunk_costs(replace(config, parallel=parallel), 1024, 2, GPUS["h100"])
    assert costs.forward[0] > plain.forward[0] and costs.forward[1] == plain.forward[1]
    assert plain.backward[0] > 0, "gradients go through it to what hears"
    with pytest.raises(BadInput, match=r"^--encoder: "):
        with_audio_input(Attached(Encoder(2, 16, 32)), config, learnt(config, 1024).trains)


def test_sense_voice_small_is_as_large_as_published() -> None:
    """Its model.pt has 936,291,369 bytes: float32, the encoder, 16 queries of 560 and the head of CTC."""
    config = compose_stage("audio_adapter", "tiny", "align_adapter", ["encoder=sense_voice_small"])
    assert config.encoder is not None
    config.encoder.in_model = True
    encoder = sum(size for name, size in of_audio_input(config).items() if name.startswith("encoder."))
    file = 936_291_369
    assert 0 < file - 4 * (encoder + 16 * 560 + 513 * 25_055) < 0.001 * file
    attached = with_audio_input(Attached(), config, learnt(config, 1024).trains)
    assert attached.encoder is not None
    assert (attached.encoder.layers, attached.encoder.positions) == (70, 500)
    assert attached.encoder.elements == pytest.approx(encoder, rel=0.01)
