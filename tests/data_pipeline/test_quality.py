"""Levels, clipping, rates, languages, mel spectra and error rates, against published numbers or another program."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.checks.quality import CORPUS_MEASURES, MEASURES
from configs.schema import QualityConfig
from data_pipeline.audio import SAMPLE_RATE
from data_pipeline.quality.clipping import clipped_share
from data_pipeline.quality.dnsmos import CLIP, clips_of, p808_features
from data_pipeline.quality.errors import Errors, count_errors, error_rates, normalise
from data_pipeline.quality.language import base_language
from data_pipeline.quality.level import Level, k_weighting, loudness_lufs
from data_pipeline.quality.mel import mel_filters, mel_power
from data_pipeline.quality.registry import open_measures
from data_pipeline.quality.speaker import window_starts
from data_pipeline.quality.transcript import Transcript
from data_pipeline.utterance import Utterance
from runtime.exits import BadInput

SILENCE = np.zeros(SAMPLE_RATE, np.float32)


def tone(frequency: float, seconds: float, rate: int = SAMPLE_RATE, peak: float = 1.0) -> np.ndarray:
    return (peak * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


# --- loudness --------------------------------------------------------------------------------------------------------


def test_k_weighting_has_the_coefficients_that_the_recommendation_tabulates_at_48_khz() -> None:
    b, a = k_weighting(48_000)
    assert np.allclose(b[0], [1.53512485958697, -2.69169618940638, 1.19839281085285], atol=1e-9)
    assert np.allclose(a[0], [1.0, -1.69065929318241, 0.73248077421585], atol=1e-9)
    assert np.allclose(b[1], [1.0, -2.0, 1.0])
    assert np.allclose(a[1], [1.0, -1.99004745483398, 0.99007225036621], atol=1e-9)


@pytest.mark.parametrize("rate", [SAMPLE_RATE, 48_000])
def test_a_full_scale_tone_of_997_hz_has_minus_3_01_lkfs(rate: int) -> None:
    assert loudness_lufs(tone(997, 5.0, rate), rate) == pytest.approx(-3.01, abs=0.05)


def test_gates_leave_silence_and_quiet_stretches_out() -> None:
    loud = tone(997, 4.0, peak=0.1)
    alone = loudness_lufs(loud)
    assert alone is not None and alone == pytest.approx(-23.01, abs=0.05)
    assert loudness_lufs(np.concatenate([loud, np.zeros(8 * SAMPLE_RATE)])) == pytest.approx(alone, abs=0.35)
    assert loudness_lufs(np.concatenate([loud, tone(997, 8.0, peak=0.001)])) == pytest.approx(alone, abs=0.35)
    both = loudness_lufs(np.concatenate([loud, tone(997, 4.0, peak=0.05)]))  # 6 dB lower: above the relative gate
    assert both == pytest.approx(10 * np.log10((0.1**2 + 0.05**2) / 4) - 0.0, abs=0.2)
    assert loudness_lufs(SILENCE) is None


def test_levels_of_short_sounds_and_silence() -> None:
    level, utterance = Level(), Utterance("a", "", "a")
    found = level.measure(tone(997, 0.1, peak=0.1), utterance)
    assert found["level_db"] == pytest.approx(-23.01, abs=0.02)
    assert found["loudness_lufs"] == pytest.approx(-23.01, abs=0.5)
    assert level.measure(SILENCE, utterance) == {} == level.measure(SILENCE[:0], utterance)


# --- clipping --------------------------------------------------------------------------------------------------------


def test_clipping_counts_flat_tops_at_any_level() -> None:
    rng = np.random.default_rng(0)
    sound = rng.normal(size=SAMPLE_RATE).astype(np.float32)
    smooth = np.convolve(sound, np.hanning(32), mode="same").astype(np.float32)
    smooth /= np.abs(smooth).max()
    cut = np.clip(smooth, -0.4, 0.4)
    truth = float((np.abs(smooth) > 0.4).mean())
    assert clipped_share(smooth) == 0.0
    assert truth > 0.05
    assert clipped_share(cut) == pytest.approx(truth, rel=0.25)
    assert clipped_share(cut * np.float32(0.01)) == clipped_share(cut)
    assert clipped_share(SILENCE) == 0.0
    assert clipped_share(tone(300, 1.0)) < 0.01


@given(st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=20))
def test_only_runs_of_three_and_more_are_clipped(runs: list[tuple[int, bool]]) -> None:
    parts, clipped = [], 0
    for length, at_peak in runs:
        parts.append(np.full(length, 1.0 if at_peak else 0.1, np.float32))
        parts.append(np.array([0.3], np.float32))  # between runs
        clipped += length if at_peak and length >= 3 else 0
    wave = np.concatenate([*parts, np.array([1.0, -0.5], np.float32)])
    assert clipped_share(wave) * len(wave) == pytest.approx(clipped)


# --- mel spectra -----------------------------------------------------------------------------------------------------


def mel_by_the_book(wave: np.ndarray, window: int, hop: int, bands: int) -> np.ndarray:
    """Slaney's mel power in float64 from its definition, frame by frame and band by band."""

    def hertz(mel: float) -> float:
        return mel * 200 / 3 if mel < 15 else 1000 * np.exp((mel - 15) * np.log(6.4) / 27)

    top = 15 + np.log(8000 / 1000) / (np.log(6.4) / 27)
    edges = [hertz(mel) for mel in np.linspace(0, top, bands + 2)]
    sound = np.concatenate([np.zeros(window // 2), wave.astype(np.float64), np.zeros(window // 2)])
    found = []
    for start in range(0, len(sound) - window + 1, hop):
        weights = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
        power = np.abs(np.fft.fft(sound[start : start + window] * weights)[: window // 2 + 1]) ** 2
        row = []
        for low, middle, high in zip(edges[:-2], edges[1:-1], edges[2:], strict=True):
            total = 0.0
            for bin_, value in enumerate(power):
                frequency = bin_ * SAMPLE_RATE / window
                height = min((frequency - low) / (middle - low), (high - frequency) / (high - middle))
                total += max(height, 0.0) * 2 / (high - low) * value
            row.append(total)
        found.append(row)
    return np.array(found)


@pytest.mark.parametrize("window, bands", [(321, 120), (400, 40)])
def test_mel_power_is_its_definition(window: int, bands: int) -> None:
    wave = np.random.default_rng(0).normal(size=1600).astype(np.float32)
    wanted = mel_by_the_book(wave, window, 160, bands)
    assert np.allclose(mel_power(wave, window, 160, bands), wanted, rtol=2e-4, atol=1e-7 * wanted.max())


def test_mel_filters_are_those_of_transformers() -> None:
    from transformers.audio_utils import mel_filter_bank

    theirs = mel_filter_bank(201, 40, 0.0, 8000.0, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
    assert np.allclose(mel_filters(400, 40), theirs, atol=1e-7)


def test_clips_are_those_that_dnsmos_was_published_with() -> None:
    """As many as its loop over whole seconds makes, each 9.01 s, of a sound doubled while it is too short."""
    for samples in (1, 16_000, 144_159, 144_160, 160_000, 175_999, 176_000, 300_000):
        wave = np.arange(samples, dtype=np.float32) % 1000
        sound = wave
        while len(sound) < 9.01 * SAMPLE_RATE:
            sound = np.append(sound, sound)
        hops = int(np.floor(len(sound) / SAMPLE_RATE) - 9.01) + 1
        wanted = [sound[i * SAMPLE_RATE : int((i + 9.01) * SAMPLE_RATE)] for i in range(hops)]
        wanted = [clip for clip in wanted if len(clip) >= int(9.01 * SAMPLE_RATE)]
        clips = clips_of(wave)
        assert len(clips) == len(wanted) > 0
        assert all(np.array_equal(one, other) for one, other in zip(clips, wanted, strict=True))


def test_features_of_p808_are_decibels_below_the_loudest() -> None:
    clip = tone(440, CLIP / SAMPLE_RATE)
    features = p808_features(clip)
    assert features.shape == (900, 120) and features.dtype == np.float32
    assert features.max() == 1.0 and features.min() == -1.0  # 0 dB and 80 dB below


def test_windows_of_the_speaker_encoder_are_those_that_resemblyzer_takes() -> None:
    """Worked from its rule: 77 frames apart, the last dropped where under three quarters of it are covered."""
    assert window_starts(8_000) == [0]
    assert window_starts(25_600) == [0]
    assert window_starts(25_600 + 77 * 160) == [0, 77]
    assert window_starts(25_600 + 40 * 160) == [0, 77]  # covered by 123 of 160 frames
    assert window_starts(25_600 + 30 * 160) == [0]  # by 113


# --- text ------------------------------------------------------------------------------------------------------------


def test_error_rates_of_a_worked_example() -> None:
    one = count_errors("The cat sat down.", "the bat sat", "en")
    assert one == Errors(word_errors=2, words=4, character_errors=5, characters=13)
    assert error_rates([one]) == {"wer": 0.5, "cer": pytest.approx(5 / 13)}
    assert error_rates([one, count_errors("a b", "", "en")]) == {"wer": 4 / 6, "cer": pytest.approx(7 / 15)}
    assert error_rates([count_errors("a", "a b c", "en"), count_errors("...", "x", "en")]) == {"wer": 2.0, "cer": 2.0}
    chinese = count_errors("今天天气", "今天气", "zh")
    assert error_rates([chinese]) == {"cer": 0.25}
    assert error_rates([one, chinese]) == {"wer": 0.5, "cer": pytest.approx(6 / 17)}
    assert error_rates([None]) == {}


def test_normalising_takes_spelling_case_and_punctuation_away() -> None:
    assert normalise("Mr. O'Neil won't pay $20, um, okay?", "en") == normalise(
        "mister o'neil will not pay $20 okay", "en"
    )
    assert normalise("Guten Tag, Welt!", "de") == "guten tag welt"


def test_a_transcript_without_words_is_not_measured() -> None:
    measure = Transcript("package:none").measure  # whose weights are therefore never asked for
    assert measure(tone(440, 1.0), Utterance("a", "...", "a")) == {}
    assert measure(SILENCE[:0], Utterance("a", "hello", "a")) == {}


def test_the_language_of_a_text_against_its_label() -> None:
    (language,) = open_measures(QualityConfig(measures=["language"]))

    def probability(text: str, label: str) -> float:
        return language.measure(SILENCE, Utterance("a", text, "a", language=label))["language_probability"]

    english = "The children played in the garden while their mother was reading a letter."
    assert probability(english, "en-GB") > 0.9 > 0.1 > probability(english, "de")
    assert probability("今天天气很好，我们去公园散步吧。", "cmn") > 0.9
    assert language.measure(SILENCE, Utterance("a", english, "a", language="tlh")) == {}
    assert language.measure(SILENCE, Utterance("a", " ", "a")) == {}
    assert [base_language(label) for label in ("en-US", "zh_CN", "yue", "eng", "fr")] == ["en", "zh", "zh", "en", "fr"]


def test_the_rate_of_a_text() -> None:
    (rate,) = open_measures(QualityConfig(measures=["rate"]))
    assert rate.measure(SILENCE, Utterance("a", "hello", "a")) == {"characters_per_second": 5.0}
    assert rate.measure(SILENCE, Utterance("a", "", "a")) == {}


# --- settings --------------------------------------------------------------------------------------------------------


def test_every_measure_has_the_columns_that_its_name_promises() -> None:
    opened = open_measures(QualityConfig(measures=list(MEASURES)))
    assert [measure.columns for measure in opened] == list(MEASURES.values())
    assert all(measure.identity() for measure in opened)
    assert len({measure.identity() for measure in opened}) == len(opened)
    names = [name for columns in (*MEASURES.values(), *CORPUS_MEASURES.values()) for name in columns]
    assert len(set(names)) == len(names) and all(name.replace("_", "").isalnum() and name.islower() for name in names)


@pytest.mark.parametrize(
    "measures, problem",
    [
        (["loudness"], "no measure loudness; there are level"),
        (["duplicates"], "megaphone data measure adds it"),
        (["level", "level"], "named twice"),
    ],
)
def test_measures_that_a_build_cannot_have_are_refused(measures: list[str], problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        open_measures(QualityConfig(measures=measures))
