"""Names and sizes without a model: those that checkpoints know."""

from __future__ import annotations

from collections import Counter

import pytest

from checkpoints.maps import named
from checkpoints.shapes import native_shape
from configs.schema import LoraConfig
from launch.planner.work import elements
from tests.launch.planner.configs import ROWS, step_audio, tiny
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
