"""A decoder's parts trained by the loop of every stage: real ranks, a real kill, and sound from the checkpoints."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.compose import to_yaml
from configs.schema import Config
from data_pipeline.corpus import Corpus
from data_pipeline.layouts.groups import lay_groups
from data_pipeline.shards import ShardReader
from runtime.exits import BAD_INPUT, BadInput
from tests.ranks import RankFailed, run_ranks
from tests.train.decoder.small import corpus_with_sound, decoder_config
from tests.train.runs import metrics, run_config, stage

CURVE = ("step", "tokens", "audio_hours", "loss", "grad_norm", "lr/trunk", "samples")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus_with_sound(tmp_path_factory.mktemp("corpus") / "corpus")


@pytest.fixture(scope="module")
def flow(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two data-parallel ranks."""
    folder = tmp_path_factory.mktemp("flow")
    run_config(_config(folder, corpus, "flow"), 2)
    return folder


@pytest.fixture(scope="module")
def vocoder(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vocoder")
    run_config(_config(folder, corpus, "vocoder", train__steps=3, optimizer__lr=2e-3))
    return folder


def _config(folder: Path, corpus: Path, objective: str, **changes: Any) -> Config:
    settings = {"checkpoint__every": 2, "train__validate_every": 3, "train__log_samples": True, **changes}
    return decoder_config(folder, corpus, objective, **settings)


def _curve(folder: Path) -> list[list[Any]]:
    return [[line.get(key) for key in CURVE] for line in metrics(folder)]


def killed(config_file: str, step: int) -> int:
    """The stage, which kills itself as it enters training step `step`."""
    from train.engines.deepspeed import DeepSpeedEngine

    original, turns = DeepSpeedEngine.train_step, iter(range(1, 1_000_000))

    def hit(self: Any, *arguments: Any, **named: Any) -> Any:
        if next(turns) == step and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *arguments, **named)

    DeepSpeedEngine.train_step = hit  # type: ignore[method-assign]
    return stage(config_file)


def test_killed_and_resumed_the_curve_is_the_same_bit_for_bit(corpus: Path, flow: Path, tmp_path: Path) -> None:
    config = _config(tmp_path / "run", corpus, "flow")
    file = tmp_path / "run" / "config.yaml"
    file.parent.mkdir()
    file.write_text(to_yaml(config))
    with pytest.raises(RankFailed):
        run_ranks(killed, 2, str(file), 4)
    run_config(config, 2)
    assert _curve(tmp_path / "run") == _curve(flow)


def test_one_rank_learns_what_two_do(corpus: Path, flow: Path, tmp_path: Path) -> None:
    run_config(_config(tmp_path / "run", corpus, "flow", engine__zero_stage=0, train__micro_batch=2))
    ours, theirs = metrics(tmp_path / "run"), metrics(flow)
    assert [line["samples"] for line in ours] == [line["samples"] for line in theirs]
    np.testing.assert_allclose([line["loss"] for line in ours], [line["loss"] for line in theirs], rtol=1e-4)


def test_the_flow_learns_and_reports_its_own_loss(flow: Path) -> None:
    results = json.loads((flow / "results.json").read_text())
    assert results["status"] == "finished"
    before, after = results["validation"]["before"], results["validation"]["after"]
    assert after["loss/flow"] == after["loss"] < 0.99 * before["loss"]


def test_the_vocoder_and_its_judges_both_learn(vocoder: Path) -> None:
    assert {"loss/adversarial", "loss/features"} <= set(metrics(vocoder)[0])
    validation = json.loads((vocoder / "results.json").read_text())["validation"]
    before, after = validation["before"], validation["after"]
    assert after["loss/mel"] == after["loss"] < 0.97 * before["loss"]
    assert after["loss/discriminator"] < before["loss/discriminator"]


def test_what_was_trained_says_codes_aloud(corpus: Path, flow: Path, vocoder: Path) -> None:
    from train.decoder.synthesis import Decoder

    opened = Corpus.open(corpus)
    with ShardReader(opened.shards("valid")[0]) as reader:
        ids = lay_groups(reader.read(0), opened.vocabulary)[:8].reshape(-1)
    for decoder in (Decoder.load(flow), Decoder.load(flow, vocoder)):
        wave, rate = decoder.decode(ids)
        assert rate == 22_050 and wave.dtype == np.float32
        assert 0 <= round(8 * 0.12 * rate) - len(wave) < 256
        assert np.isfinite(wave).all() and wave.std() > 1e-4
        assert np.array_equal(wave, decoder.decode(ids)[0])
    with pytest.raises(BadInput, match="not of a decoder's vocoder"):
        Decoder.load(flow, flow)


def test_a_layout_without_sound_is_refused_before_anything_starts(corpus: Path, tmp_path: Path) -> None:
    config = _config(tmp_path / "run", corpus, "flow")
    config.mixture.sources["speech"].layout, config.mixture.sources["speech"].options = "continuation", {}
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert run_ranks(stage, 1, str(file)) == [BAD_INPUT]
