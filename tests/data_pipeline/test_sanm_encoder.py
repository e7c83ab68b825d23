"""SenseVoice-small's and offline Paraformer's encoders from FunASR's folders, against their formulas in float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.checks.audio_input import check_features
from configs.schema import CodecConfig, Config, EncoderConfig, EncoderKind
from data_pipeline.building.listening import Listener, describe_features
from data_pipeline.codecs.sanm_encoder import SanmFeatures, load_encoder
from data_pipeline.decode import decode
from runtime.exits import BadInput
from tests.data_pipeline import sanm_reference
from tests.data_pipeline.codec_material import funasr, sound
from tests.data_pipeline.test_codecs_step_audio import kaldi_filterbank

PROMPTS = Path("/usr/share/asterisk/sounds/en")
SENSE_VOICE = EncoderConfig(
    name="toy", kind=EncoderKind.sense_voice, mels=80, width=16, layers=3, tp_layers=2, heads=2, ffn=24, positions=None
)
PARAFORMER = replace(SENSE_VOICE, kind=EncoderKind.paraformer, tp_layers=0)
EPS = {EncoderKind.sense_voice: 1e-5, EncoderKind.paraformer: 1e-12}
LENGTHS = (16_000, 399, 4_321, 30_000)


def by_hand(encoder: EncoderConfig, wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Normalised features and vectors of a wave in float64: stacks begin three copies of the first frame before it."""
    folder = Path(str(encoder.weights))
    frames = list(kaldi_filterbank(np.pad(wave, (0, max(400 - len(wave), 0)))))
    count, rows = -(-len(frames) // 6), [frames[0]] * 3 + frames
    stacks = [np.concatenate([rows[min(6 * i + j, len(rows) - 1)] for j in range(7)]) for i in range(count)]
    text = (folder / "am.mvn").read_text().split("<LearnRateCoef> 0 [")
    shift, scale = (np.array(part.split("]")[0].split(), np.float64) for part in text[1:])
    features = (np.array(stacks) + shift) * scale
    return features, formula(encoder, features)


def formula(encoder: EncoderConfig, features: np.ndarray, kind: EncoderKind | None = None) -> np.ndarray:
    state = torch.load(Path(str(encoder.weights)) / "model.pt", weights_only=True)
    w = {name.removeprefix("encoder."): tensor.double() for name, tensor in state.items() if "encoder." in name}
    return sanm_reference.vectors(w, torch.from_numpy(features), encoder.heads, EPS[kind or encoder.kind]).numpy()


@pytest.mark.parametrize("encoder", [SENSE_VOICE, PARAFORMER], ids=lambda encoder: encoder.kind.value)
def test_vectors_are_those_of_the_formulas_whatever_is_encoded_beside(encoder: EncoderConfig, tmp_path: Path) -> None:
    encoder = funasr(tmp_path / "model", encoder)
    waves = [sound(length, seed) for seed, length in enumerate(LENGTHS)]
    together = SanmFeatures(encoder, "cpu", 1e4, vectors=True)
    inputs = [together.inputs(wave) for wave in waves]
    assert [len(rows) for rows in inputs] == [17, 1, 5, 31], "one for every 60 ms of frames begun"
    found = together.vectors(inputs)
    for wave, rows, ours in zip(waves, inputs, found, strict=True):
        features, theirs = by_hand(encoder, wave)
        assert np.abs(rows - features).max() < 1e-3
        assert np.abs(ours - theirs).max() < 2e-4
    alone = [together.vectors([rows])[0] for rows in inputs]
    for ours, other in zip(found, alone, strict=True):
        assert np.abs(ours - other).max() < 1e-5


def test_norms_add_to_a_variance_what_the_kind_says(tmp_path: Path) -> None:
    """Which is seen where vectors are small."""
    features = np.random.default_rng(0).standard_normal((9, 560))
    for encoder, other in ((SENSE_VOICE, PARAFORMER), (PARAFORMER, SENSE_VOICE)):
        encoder = funasr(tmp_path / encoder.kind.value, encoder)
        state = torch.load(tmp_path / encoder.kind.value / "model.pt", weights_only=True)
        for name, tensor in state.items():
            tensor.mul_(1e-3 if "self_attn" in name or "w_2" in name else 1)
        torch.save(state, tmp_path / encoder.kind.value / "model.pt")
        ours = SanmFeatures(encoder, "cpu", None, vectors=True).vectors([features.astype(np.float32)])[0]
        assert np.abs(ours - formula(encoder, features)).max() < 2e-3
        assert np.abs(ours - formula(encoder, features, other.kind)).max() > 0.1


def test_a_window_is_encoded_as_if_it_were_alone(tmp_path: Path) -> None:
    encoder = replace(funasr(tmp_path / "model", SENSE_VOICE), positions=12)
    ear = SanmFeatures(encoder, "cpu", None, vectors=True)
    rows = ear.inputs(sound(30_000))
    parts = [formula(encoder, part.astype(np.float64)) for part in np.split(rows, [12, 24])]
    found = ear.vectors([rows[:5], rows])
    assert [len(vectors) for vectors in found] == [5, 31]
    assert np.abs(found[1] - np.concatenate(parts)).max() < 2e-4


@pytest.mark.skipif(not PROMPTS.is_dir(), reason="Debian's asterisk-core-sounds-en-g722 is not installed")
def test_a_corpus_keeps_both_of_a_human_voice(tmp_path: Path) -> None:
    config = Config(codec=CodecConfig(device="cpu"), encoder=funasr(tmp_path / "model", SENSE_VOICE))
    config.corpus.features = ["mel", "vectors"]
    assert config.encoder is not None
    waves = [decode(PROMPTS / f"{name}.g722").samples[0] for name in ("agent-pass", "auth-thankyou")]
    for wave, kept in zip(waves, Listener(config).features(waves), strict=True):
        features, theirs = by_hand(config.encoder, wave)
        assert {name: rows.dtype for name, rows in kept.items()} == {"toy": np.float16, "toy_mel": np.float16}
        assert np.abs(kept["toy_mel"] - features).max() < 5e-3 and kept["toy_mel"].shape == features.shape
        assert np.abs(kept["toy"] - theirs).max() < 5e-3
    described = describe_features(config)
    assert [described[name]["width"] for name in ("toy", "toy_mel")] == [16, 560]
    before = described["toy_mel"]["encoder"], described["toy"]["encoder"]
    torch.save({}, tmp_path / "model/model.pt")
    described = describe_features(config)
    assert described["toy_mel"]["encoder"] == before[0] and described["toy"]["encoder"] != before[1]


def test_other_weights_are_refused_in_one_line(tmp_path: Path) -> None:
    encoder = funasr(tmp_path / "model", SENSE_VOICE)
    for wrong, line in (
        (
            replace(encoder, layers=4),
            r"model.pt has no encoders\.2\.norm1\.weight, which encoder toy \(kind sense_voice\) has",
        ),
        (replace(encoder, layers=2), r"has encoders\.1\.\S+, which encoder toy \(kind sense_voice\) has no place for"),
        (
            replace(encoder, kind=EncoderKind.paraformer),
            r"has tp_encoders\.0\.\S+, which encoder toy \(kind paraformer\) has no place for",
        ),
        (
            replace(encoder, ffn=25),
            r"encoders0\.0\.feed_forward\.w_1\.weight has shape \[24, 16\], encoder toy \[25, 16\]",
        ),
        (replace(encoder, weights=str(tmp_path)), r"the folder has no model\.safetensors or model\.pt"),
    ):
        with pytest.raises(BadInput, match=rf"^encoder\.weights.*{line}$"):
            load_encoder(wrong)
    with pytest.raises(
        BadInput, match=r"^encoder\.weights: the encoder takes 280 dimensions, \S+am\.mvn has 560 and 560"
    ):
        SanmFeatures(replace(encoder, mels=40), "cpu", None, vectors=False)
    (tmp_path / "model/am.mvn").unlink()
    with pytest.raises(BadInput, match=r"^encoder\.weights=\S+: the folder has no am\.mvn"):
        SanmFeatures(encoder, "cpu", None, vectors=False)


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"tp_layers": 0}, "encoder.tp_layers=0: has to be above 0 with encoder.kind=sense_voice"),
        ({"kind": EncoderKind.paraformer}, "encoder.tp_layers=2: has to be 0 with encoder.kind=paraformer"),
        (
            {"kind": EncoderKind.whisper, "tp_layers": 0},
            "encoder.positions is null, and encoder.kind=whisper has a table",
        ),
        ({"mels": 5}, "encoder.mels=5: has to be even"),
        ({"kernel": 0}, "encoder.kernel=0: has to be above 0"),
    ],
)
def test_values_that_cannot_be_are_refused_in_one_line(wrong: dict[str, Any], line: str) -> None:
    with pytest.raises(BadInput, match=line):
        check_features(Config(encoder=replace(SENSE_VOICE, **wrong)))
