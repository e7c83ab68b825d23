"""Layouts that mix text and audio in one document: spans, segments, chunks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.layouts.groups import ungroup
from data_pipeline.layouts.interleaved import draw_spans
from data_pipeline.layouts.segments import segment_starts
from data_pipeline.utterance import Word
from runtime.exits import BadInput
from tests.data_pipeline.layout_material import GLM, GROUPED, RESIDUAL, lay, said, speak, step_audio, weights

RNG = np.random.default_rng(0)
# --- spans ------------------------------------------------------------------------------------------------------


@given(count=st.integers(0, 300), ratio=st.floats(0, 1), mean=st.floats(1, 30), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=200)
def test_spans_hold_their_ratio_and_do_not_overlap(count, ratio, mean, seed):
    found = draw_spans(count, ratio, mean, np.random.default_rng(seed))
    inside = [item for start, end in found for item in range(start, end)]
    assert len(inside) == round(ratio * count)
    assert inside == sorted(set(inside)) and all(0 <= item < count for item in inside)


def test_span_lengths_are_poisson_and_places_are_uniform():
    rng = np.random.default_rng(1)
    lengths = np.concatenate([np.diff(draw_spans(40_000, 0.3, 10.0, rng), axis=1)[:, 0] for _ in range(5)])
    assert lengths.mean() == pytest.approx(10, abs=0.1)
    assert lengths.var() == pytest.approx(10, abs=0.5)
    firsts = [draw_spans(4, 0.25, 10.0, rng)[0][0] for _ in range(4000)]
    assert np.bincount(firsts) / 4000 == pytest.approx([0.25] * 4, abs=0.03)


def test_a_span_of_words_is_spoken_from_its_first_word_to_the_next():
    """Twenty words of 0.48 s are four groups each: what is spoken is 12 s x 0.3, and text and codes tell the same."""
    text = " ".join(f"w{i}" for i in range(20))
    utterance = speak(GROUPED, 9.6, RNG, text)
    (sample,) = lay("spans", [utterance], GROUPED, 3, mean_length=2.0)
    assert np.all(sample.loss_weight == 1)
    audio = sample.modality > 0
    assert audio.sum() == 5 * 4 * 6  # 30% of twenty words
    parts = said(sample, GROUPED)
    spoken, at = [], 0
    for part in parts:
        if isinstance(part, int):
            spoken += range(at, at + part // 20)
            at += part // 20
        elif not part.startswith("<|"):
            own = [f"w{i}" for i in range(at, at + len(part.split()))]
            assert part == (" " if at else "") + " ".join(own)
            at += len(own)
    assert at == 20 and len(spoken) == 6
    codes = ungroup(sample.tokens[audio], GROUPED)
    whole = utterance.codes["semantic"][0][: 20 * 12].reshape(20, 12)
    np.testing.assert_array_equal(codes["semantic"][0], whole[spoken].reshape(-1))


def test_spans_of_tokens_end_at_words():
    text = " ".join(["beginning", "a", "extraordinarily", "we"] * 10)
    for seed in range(5):
        utterance = speak(GROUPED, 19.2, RNG, text)
        (sample,) = lay("spans", [utterance], GROUPED, seed, level="token", mean_length=12.0, ratio=0.4)
        spoken = (sample.modality > 0).sum() / 5 / 4
        assert spoken == int(spoken)  # whole words
        written = "".join(part for part in said(sample, GROUPED) if isinstance(part, str) and part[:2] != "<|")
        assert len(written.split()) == 40 - spoken
        tokens = len(GROUPED.encode_text(text)), len(GROUPED.encode_text(written))
        assert 1 - tokens[1] / tokens[0] == pytest.approx(0.4, abs=0.1)


@pytest.mark.parametrize(
    "ratio, expected",
    [(0.0, ["a b c d", "<|endoftext|>"]), (1.0, ["<|audio_start|>", 40, "<|audio_end|>", "<|endoftext|>"])],
)
def test_spans_of_nothing_and_of_all_run_over_utterances(ratio, expected):
    utterances = [speak(GROUPED, 0.48, RNG, "a b", key="1"), speak(GROUPED, 0.48, RNG, "c d", key="2")]
    (sample,) = lay("spans", utterances, GROUPED, ratio=ratio)
    assert said(sample, GROUPED) == expected


def test_words_too_short_for_a_group_go_with_their_span():
    """Eight words in 0.5 s: most have no group of their own, and are spoken with their neighbours all the same."""
    utterance = speak(GROUPED, 0.5, RNG, "a b c d e f g h")
    (sample,) = lay("spans", [utterance], GROUPED, ratio=1.0)
    assert said(sample, GROUPED) == ["<|audio_start|>", 20, "<|audio_end|>", "<|endoftext|>"]


def test_text_without_spaces_gets_none():
    chinese = speak(GROUPED, 0.96, RNG, "", language="zh", key="1")
    words = tuple(Word(word, 0.48 * i, 0.48 * i + 0.4) for i, word in enumerate(["你好", "世界"]))
    chinese = replace(chinese, text="你好，世界。", words=words)
    (sample,) = lay("spans", [chinese, replace(chinese, key="2")], GROUPED, ratio=0.0)
    assert said(sample, GROUPED) == ["你好，世界。你好，世界。", "<|endoftext|>"]
    for seed in range(4):
        (sample,) = lay("interleaved", [chinese], GROUPED, seed, shortest=1, longest=1)
        assert not any(" " in part for part in said(sample, GROUPED) if isinstance(part, str))


# --- segments ---------------------------------------------------------------------------------------------------


def test_segments_end_at_punctuation_and_pauses():
    utterance = speak(GROUPED, 4.8, RNG, 'One "two," three four. five six seven eight')
    late = [Word(w.text, w.start + 0.4 * (i >= 6), w.end + 0.4 * (i >= 6)) for i, w in enumerate(utterance.words)]
    paused = replace(utterance, words=tuple(late))
    assert segment_starts(utterance, 0.3, 1) == [0, 2, 4]
    assert segment_starts(paused, 0.3, 1) == [0, 2, 4, 6]
    assert segment_starts(paused, 0.3, 3) == [0, 4]


def test_intlv_alternates_and_has_loss_on_text_only():
    utterance = speak(
        GROUPED, 4.8, RNG, "One two, three four. five six; seven eight"
    )  # 0.6 s a word: ten groups a segment
    (sample,) = lay("intlv", [utterance], GROUPED)
    assert weights(sample, GROUPED) == [
        ("<|audio_start|>", 0), (50, 0), ("<|audio_end|>", 0), (" three four.", 1),
        ("<|audio_start|>", 0), (50, 0), ("<|audio_end|>", 0), (" seven eight", 1), ("<|endoftext|>", 1),
    ]  # fmt: skip


def test_itts_writes_then_speaks_and_has_no_loss_on_the_first_text():
    first = speak(GROUPED, 2.4, RNG, "One two, three four.", key="1")
    (sample,) = lay("itts", [first, speak(GROUPED, 1.2, RNG, "Five six", key="2")], GROUPED)
    assert weights(sample, GROUPED) == [
        ("One two,", 0), ("<|audio_start|>", 1), (50, 1), ("<|audio_end|>", 1),
        (" three four.", 1), ("<|audio_start|>", 1), (50, 1), ("<|audio_end|>", 1),
        (" Five six", 1), ("<|audio_start|>", 1), (50, 1), ("<|audio_end|>", 1), ("<|endoftext|>", 1),
    ]  # fmt: skip


def test_segments_as_frames_of_several_columns():
    """Baichuan-Audio's form: every frame of audio is one place, with a column for text beside those of the codes."""
    utterance = speak(RESIDUAL, 3.2, RNG, "One two, three four.")
    (sample,) = lay("itts", [utterance], RESIDUAL, frames=True)
    assert sample.tokens.shape[1] == 5
    audio = sample.tokens[:, 0] >= 0
    assert audio.sum() == 40 and np.all(sample.tokens[audio, -1] == -1) and np.all(sample.tokens[~audio, :-1] == -1)
    first = len(RESIDUAL.encode_text("One two,"))
    assert np.all(sample.loss_weight[:first] == 0)
    assert np.all(sample.loss_weight[first:][sample.tokens[first:] >= 0] == 1)
    np.testing.assert_array_equal(
        sample.tokens[audio, :-1], utterance.codes["mimi"].T + RESIDUAL.ranges["mimi"].start + 16 * np.arange(4)
    )


# --- chunks -----------------------------------------------------------------------------------------------------


def text_of(count: int) -> str:
    return "1" * count  # a byte-level tokenizer that never saw digits has one token for each


def runs(sample) -> list[int]:
    """Lengths of the runs of text (positive) and of audio (negative), the end token left out."""
    edges = np.flatnonzero(
        np.diff(sample.modality[:-1] > 0, prepend=not sample.modality[0], append=not sample.modality[-2])
    )
    return [int(n) * (-1) ** int(sample.modality[at] > 0) for at, n in zip(edges, np.diff(edges), strict=False)]


@pytest.mark.parametrize(
    "text, audio, chunks, expected",
    [
        (30, 100, (13, 26), [13, -26, 13, -26, 4, -48]),  # GLM-4-Voice
        (26, 100, (13, 26), [13, -26, 13, -74]),
        (12, 100, (5, 15), [5, -15, 5, -15, 2, -70]),  # MinMo, CosyVoice 2
        (40, 26, (13, 26), [13, -26, 27]),  # audio ends first
        (2, 3, (13, 26), [2, -3]),
    ],
)
def test_text_and_audio_in_turn(text, audio, chunks, expected):
    utterance = speak(GLM, audio / 12.5, RNG, text_of(text))
    (sample,) = lay("chunked", [utterance], GLM, text_chunk=chunks[0], audio_chunk=chunks[1])
    assert runs(sample) == expected
    np.testing.assert_array_equal(ungroup(sample.tokens[sample.modality > 0], GLM)["audio"], utterance.codes["audio"])
    assert GLM.decode_text(sample.tokens[sample.modality == 0].tolist()) == utterance.text + "<|endoftext|>"


@pytest.mark.parametrize("text, expected", [(7, [3, 10, 3, 10, 1, "<sep>", 5]), (6, [3, 10, 3, 10, "<sep>", 5])])
def test_three_to_ten_with_a_separator_and_loss_on_audio_alone(text, expected):
    """LLaMA-Omni 2: c1 c2 c3 u1..u10 c4 c5 c6 u11..u20 ... <sep> u..."""
    utterance = speak(GLM, 2.0, RNG, text_of(text))
    (sample,) = lay("chunked", [utterance], GLM, text_chunk=3, audio_chunk=10, turn="<sep>", text_weight=0.0)
    parts = [len(part) if isinstance(part, str) and part[0] == "1" else part for part in said(sample, GLM)]
    assert parts == [*expected, "<|endoftext|>"]
    writes = (sample.modality == 0) & (sample.tokens < GLM.text_size) & (np.arange(len(sample)) < len(sample) - 1)
    assert np.all(sample.loss_weight[writes] == 0) and np.all(sample.loss_weight[~writes] == 1)


def test_ten_to_fifteen_is_ten_to_six_to_nine():
    """Step-Audio-AQAA: text, linguistic and semantic tokens 10:6:9."""
    vocabulary = step_audio()
    utterance = speak(vocabulary, 2.4, RNG, "a" * 25)
    (sample,) = lay("chunked", [utterance], vocabulary, text_chunk=10, audio_chunk=15)
    first = np.bincount(sample.modality[10:25], minlength=3)
    assert first.tolist() == [0, 6, 9] and runs(sample)[:4] == [10, -15, 10, -15]
    with pytest.raises(BadInput, match="a multiple of 5"):
        lay("chunked", [utterance], vocabulary, text_chunk=13, audio_chunk=26)


def test_a_share_of_the_utterances_is_chunked_if_its_audio_is_long_enough():
    """CosyVoice 2: half of them, and only with more than three audio tokens for each of text."""
    long = [speak(GLM, 4.0, RNG, text_of(10), key=str(i)) for i in range(400)]
    options = {"text_chunk": 5, "audio_chunk": 15, "turn": "<sep>", "share": 0.5, "least_ratio": 3.0}
    samples = lay("chunked", long, GLM, **options)
    whole = [text_of(10), "<sep>", 50, "<|endoftext|>"]
    assert sum(said(sample, GLM) == whole for sample in samples) == pytest.approx(200, abs=40)
    short = [speak(GLM, 2.4, RNG, text_of(10), key=str(i)) for i in range(20)]
    assert all(said(sample, GLM)[1] == "<sep>" for sample in lay("chunked", short, GLM, **options))
