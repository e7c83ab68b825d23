"""Decoders of the config: those that are there pass, impossible ones are refused in one line that names the key."""

from __future__ import annotations

import pytest

from configs.checks import check
from configs.compose import compose_stage, groups
from configs.schema import StageKind
from runtime.exits import BadInput


@pytest.mark.parametrize("stage", ["flow", "vocoder"])
def test_the_recipe_passes_with_every_decoder(stage: str) -> None:
    for name in groups()["decoder"]:
        config = compose_stage("decoder", "tiny", stage, [f"decoder={name}"])
        check(config, 1)
        options = config.mixture.sources["speech"].options
        assert config.stage.kind is StageKind.decoder
        assert (options["rate"], options["speaker"]) == (config.decoder.mel.rate, config.decoder.speaker)


def test_published_sizes() -> None:
    decoder = compose_stage("decoder", "small", "flow", []).decoder
    assert (decoder.flow.embedding, decoder.flow.channels, decoder.flow.middle) == (512, [256, 256], 12)
    assert (decoder.mel.rate, decoder.mel.window, decoder.mel.hop, decoder.mel.bands) == (22_050, 1024, 256, 80)
    assert (decoder.flow.drop, decoder.flow.guidance, decoder.flow.euler_steps) == (0.2, 0.7, 10)


@pytest.mark.parametrize(
    "setting, line",
    [
        ("stage.objective=pretrain", "stage.objective=pretrain: a stage of kind decoder"),
        ("stage.kind=train", "needs stage.kind=decoder"),
        ("train.precision=bf16", "train.precision=bf16: a decoder is trained in fp32"),
        ("engine=megatron", "engine.name=megatron"),
        ("engine.zero_stage=3", "engine.zero_stage=3"),
        ("parallel.tensor=2", "parallel.tensor=2"),
        ("decoder.mel.hop=255", "decoder.mel.hop=255"),
        ("decoder.mel.highest=12000", "below half of rate=22050"),
        ("decoder.flow.channels=[]", "decoder.flow.channels"),
        ("decoder.flow.drop=1.5", "decoder.flow.drop=1.5"),
        ("decoder.flow.reach=-1", "decoder.flow.reach=-1"),
        ("decoder.vocoder.segment=1", "decoder.vocoder.segment=1"),
        ("decoder.vocoder.layers=0", "decoder.vocoder.layers=0"),
    ],
)
def test_impossible_decoders_are_refused(setting: str, line: str) -> None:
    with pytest.raises(BadInput, match=line.replace("[", r"\[")):
        check(compose_stage("decoder", "tiny", "flow", [setting]), 1)
