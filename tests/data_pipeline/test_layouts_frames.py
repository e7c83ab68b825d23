"""Layouts whose places hold several tokens, vectors of an encoder, or further targets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.layouts import find_layout
from data_pipeline.layouts.groups import lay_groups, unframe, ungroup
from data_pipeline.packing import fill_packs
from data_pipeline.utterance import Utterance, Word
from data_pipeline.vocabulary import Codebook
from runtime.exits import BadInput
from tests.data_pipeline.layout_material import GROUPED, MIMI, RESIDUAL, SINGLE, lay, said, speak, weights

RNG = np.random.default_rng(0)

# --- residual codebooks -----------------------------------------------------------------------------------------


def test_rows_of_a_residual_codebook_have_ids_of_their_own():
    codes = {"mimi": np.array([[1, 2], [3, 4], [5, 6], [7, 8]])}
    utterance = Utterance(key="u", text="", document="d", duration=0.16, codes=codes)
    start = RESIDUAL.ranges["mimi"].start
    groups = lay_groups(utterance, RESIDUAL)
    assert (groups - start).tolist() == [[1, 16 + 3, 32 + 5, 48 + 7], [2, 16 + 4, 32 + 6, 48 + 8]]
    np.testing.assert_array_equal(ungroup(groups.reshape(-1), RESIDUAL)["mimi"], codes["mimi"])
    with pytest.raises(BadInput, match="has no 4 rows of codes for codebook mimi"):
        lay_groups(replace(utterance, codes={"mimi": codes["mimi"][:3]}), RESIDUAL)


@given(frames=st.integers(0, 30), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_frames_and_groups_give_their_codes_back(frames, seed):
    books = (Codebook("a", 8, 12.5, rows=3), Codebook("b", 4, 12.5), Codebook("c", 6, 12.5, rows=2))
    vocabulary = replace(GROUPED, codebooks=books)
    rng = np.random.default_rng(seed)
    codes = {book.name: rng.integers(0, book.size, (book.rows, frames)) for book in books}
    groups = lay_groups(Utterance(key="u", text="", document="d", codes=codes), vocabulary)
    framed = np.hstack([groups, np.full((frames, 1), -1)])
    for back in (unframe(framed, vocabulary), ungroup(groups.reshape(-1), vocabulary)):
        assert list(back) == ["a", "b", "c"]
        for name, rows in codes.items():
            np.testing.assert_array_equal(back[name], rows)


def test_unframe_names_the_frame_and_column_that_are_wrong():
    framed = np.hstack([RESIDUAL.first_ids[None] + [[3], [5], [1]], np.full((3, 1), -1)])
    assert unframe(framed, RESIDUAL)["mimi"].tolist() == [[3, 5, 1]] * 4
    turned = framed.copy()
    turned[1, [1, 2]] = turned[1, [2, 1]]
    with pytest.raises(BadInput, match="in frame 1, column 1, is not of codebook mimi"):
        unframe(turned, RESIDUAL)
    written = framed.copy()
    written[2] = [-1, -1, -1, -1, 65]
    with pytest.raises(BadInput, match="frame 2 has text 65"):
        unframe(written, RESIDUAL)
    with pytest.raises(BadInput, match="frames of 5 columns"):
        unframe(framed[:, 1:], RESIDUAL)


# --- CSM --------------------------------------------------------------------------------------------------------


def test_csm_rows():
    """<BOS>[0]Good morning<EOS>, a row for each 80 ms, the zero row, <BOS>[1]Hi there<EOS>, ..."""
    spoken = [
        speak(MIMI, 2.0, RNG, "Good morning", speaker="ann", key="1"),
        speak(MIMI, 1.2, RNG, "Hi there", speaker="bob", key="2"),
        speak(MIMI, 0.4, RNG, "Well", speaker="ann", key="3"),
        Utterance(key="4", text="Not spoken", document="d"),
    ]
    (sample,) = lay("csm", spoken, MIMI)
    assert sample.tokens.shape == (len(sample), 33)
    zero = MIMI.first_ids
    at = 0
    for utterance, prefix in zip(spoken[:3], ["[0]Good morning", "[1]Hi there", "[0]Well"], strict=True):
        written = [MIMI.special("<|begin_of_text|>"), *MIMI.encode_text(prefix), MIMI.special("<|end_of_text|>")]
        rows = sample.tokens[at : at + len(written)]
        assert rows[:, 32].tolist() == written and np.all(rows[:, :32] == -1)
        at += len(written)
        frames = utterance.codes["mimi"].shape[1]
        audio = sample.tokens[at : at + frames + 1]
        assert np.all(audio[:, 32] == -1)
        np.testing.assert_array_equal(unframe(audio, MIMI)["mimi"][:, :-1], utterance.codes["mimi"])
        assert audio[-1, :32].tolist() == zero.tolist() and zero.tolist()[:2] == [zero[0], zero[0] + 2051]
        at += frames + 1
    assert at == len(sample)
    assert sample.audio_seconds == pytest.approx(3.6)


def test_csm_loss():
    """The first codebook in every frame, the other 31 in one frame of sixteen, nothing on text."""
    (sample,) = lay("csm", [speak(MIMI, 12.72, RNG, "A long one")], MIMI, seed=1)  # 159 frames and the closing one
    audio = sample.tokens[:, 0] >= 0
    assert audio.sum() == 160
    assert np.all(sample.loss_weight[~audio] == 0) and np.all(sample.loss_weight[audio, 0] == 1)
    deep = sample.loss_weight[audio, 1:32]
    assert np.all(deep == deep[:, :1]) and deep[:, 0].sum() == 10 and np.all(sample.loss_weight[:, 32] == 0)
    (other,) = lay("csm", [speak(MIMI, 12.72, np.random.default_rng(0), "A long one")], MIMI, seed=2)
    assert not np.array_equal(other.loss_weight, sample.loss_weight)
    for share, expected in ((0.0, 0), (1.0, 160)):
        (sample,) = lay("csm", [speak(MIMI, 12.72, RNG, "A long one")], MIMI, depth_share=share)
        assert (sample.loss_weight[audio, 1] == 1).sum() == expected


def test_labels_of_frames_are_the_next_row():
    (sample,) = lay("csm", [speak(RESIDUAL, 0.4, RNG, "Hi")], RESIDUAL)
    (pack,) = fill_packs([sample], len(sample) + 3, 7)
    np.testing.assert_array_equal(pack.labels[: len(sample) - 1], sample.tokens[1:])
    np.testing.assert_array_equal(pack.loss_weight[: len(sample) - 1], sample.loss_weight[1:])
    assert pack.tokens[-1].tolist() == [-1, -1, -1, -1, 7] and pack.padding == 3
    assert not pack.loss_weight[len(sample) - 1 :].any()


def test_frames_need_codebooks_of_one_frame_a_group():
    for name, options in (("csm", {}), ("text", {"frames": True}), ("chat", {"frames": True})):
        with pytest.raises(BadInput, match="codebook linguistic has 2 codes a group"):
            lay(name, [], GROUPED, **options)


# --- two channels -----------------------------------------------------------------------------------------------


def two_channels(first: list[int], second: list[int]) -> list[Utterance]:
    return [
        Utterance(key=str(channel), text="", document="d", channel=channel, codes={"units": np.array([codes])})
        for channel, codes in enumerate((first, second))
    ]


def test_dgslm_worked_example():
    """x = 5 5 9 9 9 and f = 5 9 9 9 2: edges [5, 9, 2] at 0, 1, 4; durations [1, 3, 1 and what the next block adds],
    read one place later, where the third falls off the block. The other channel never changes."""
    first, *_ = lay("channels", two_channels([5, 5, 9, 9, 9, 2, 2, 2, 7, 7], [3] * 10), SINGLE, block=5)
    start = SINGLE.ranges["units"].start
    assert (first.tokens - start).tolist() == [[5, 3], [5, 3], [9, 3], [9, 3], [9, 3]]
    edge, duration = first.targets["edge"], first.targets["duration"]
    assert edge.weight.T.tolist() == [[1, 1, 0, 0, 1], [1, 0, 0, 0, 0]]
    assert (edge.values.T - start).tolist() == [[5, 9, 9, 9, 2], [3, 3, 3, 3, 3]]
    assert duration.weight.T.tolist() == [[0, 1, 1, 0, 0], [0, 1, 0, 0, 0]]
    assert duration.values.T.tolist() == [[0, 1, 3, 0, 0], [0, 9, 0, 0, 0]]
    assert not first.loss_weight.any() and first.audio_seconds == pytest.approx(0.2)

    at_once, *_ = lay("channels", two_channels([5, 5, 9, 9, 9, 2, 2, 2, 7, 7], [3] * 10), SINGLE, block=5, delay=0)
    assert at_once.targets["duration"].weight.T.tolist()[0] == [1, 1, 0, 0, 1]
    assert at_once.targets["duration"].values.T.tolist()[0] == [1, 3, 0, 0, 3]  # 1, and 2 of the next block


@given(
    streams=st.integers(1, 60).flatmap(lambda n: st.tuples(*[st.lists(st.integers(0, 3), min_size=n, max_size=n)] * 2)),
    block=st.integers(2, 20),
    longest=st.integers(1, 6),
    delay=st.integers(0, 3),
)
@settings(max_examples=100)
def test_channels_against_a_plain_count(streams, block, longest, delay):
    samples = lay("channels", two_channels(*streams), SINGLE, block=block, longest_run=longest, delay=delay)
    start = SINGLE.ranges["units"].start
    for channel, stream in enumerate(streams):
        tokens = [int(token) - start for sample in samples for token in sample.tokens[:, channel]]
        assert tokens == stream
        for number, sample in enumerate(samples):
            begin, length = number * block, len(sample)
            edges, durations = {}, {}
            for t in range(length):
                now = begin + t + 1
                if now < len(stream) and (t == 0 or stream[now] != stream[now - 1]):
                    edges[t] = stream[now]
                    run = 1
                    while now + run < len(stream) and stream[now + run] == stream[now]:
                        run += 1
                    if t + delay < length:
                        durations[t + delay] = min(run, longest)
            for name, expected, offset in (("edge", edges, start), ("duration", durations, 0)):
                target = sample.targets[name]
                at = np.flatnonzero(target.weight[:, channel]).tolist()
                assert at == sorted(expected)
                assert [target.values[t, channel] - offset for t in at] == [expected[t] for t in at]


def test_channels_want_one_utterance_each():
    pair = two_channels([1, 2, 3], [4, 5])
    assert [len(sample) for sample in lay("channels", pair, SINGLE)] == [2]  # the shorter of the two
    for document in (pair[:1], [pair[0], replace(pair[1], channel=0)], [*pair, pair[1]], []):
        assert lay("channels", document, SINGLE) == []
    assert [s.targets["edge"].weight.max() for s in lay("channels", pair, SINGLE, edge_weight=0.5)] == [0.5]
    with pytest.raises(BadInput, match="one codebook of one row"):
        lay("channels", [], GROUPED)
    with pytest.raises(BadInput, match="block from 2"):
        lay("channels", [], SINGLE, block=1)


# --- units of one second ----------------------------------------------------------------------------------------


def conversation() -> list[Utterance]:
    """2.4 s heard, then 1.8 s said: its words begin at 2.5, 2.9 and 3.6 s."""
    vectors = np.arange(120, dtype=np.float16)[:, None] * np.ones((1, 4), np.float16)
    question = replace(speak(SINGLE, 2.4, RNG, "Where is it", role="human", key="1"), features={"whisper": vectors})
    answer = speak(SINGLE, 1.8, RNG, "Over many waters.", role="assistant", key="2")
    words = (Word("Over", 0.1, 0.4), Word("many", 0.5, 1.1), Word("waters", 1.2, 1.7))
    return [question, replace(answer, words=words)]


def test_units_hear_features_and_say_text():
    """Twenty-five places a second (50 vectors, two a place), then what is said by when each word begins."""
    (sample,) = lay("units", conversation(), SINGLE, encoder="whisper", speak="<|speak|>")
    assert weights(sample, SINGLE) == [
        ("<unit>", 0), (-25, 0), ("<|listen|>", 1),
        ("<unit>", 0), (-25, 0), ("<|listen|>", 1),
        ("<unit>", 0), (-10, 0), ("<|speak|>", 1), ("Over many", 1),
        ("<unit>", 0), ("<|speak|>", 1), (" waters.", 1),
        ("<unit>", 0), ("<|speak|>", 1), ("<|endoftext|>", 1),
    ]  # fmt: skip
    assert [(slots.start, slots.places, len(slots.vectors)) for slots in sample.slots] == [
        (1, 25, 50),
        (28, 25, 50),
        (55, 10, 20),
    ]
    np.testing.assert_array_equal(np.concatenate([s.vectors for s in sample.slots])[:, 0], np.arange(120))
    assert np.bincount(sample.group).tolist() == [27, 27, 10 + 2 + len(SINGLE.encode_text("Over many")),
                                                  2 + len(SINGLE.encode_text(" waters.")), 2, 1]  # fmt: skip
    assert sample.audio_seconds == pytest.approx(2.4)


def test_units_hear_and_say_codes():
    spoken = conversation()
    (sample,) = lay("units", spoken, SINGLE, says="both")
    assert said(sample, SINGLE) == [
        "<unit>", 50, "<|listen|>", "<unit>", 50, "<|listen|>", "<unit>", 20, "<|speak|>", "Over many", 30,
        "<unit>", "<|speak|>", " waters.", 50, "<unit>", "<|speak|>", 10, "<|endoftext|>",
    ]  # fmt: skip
    codes = ungroup(sample.tokens[sample.modality > 0], SINGLE)["units"]
    np.testing.assert_array_equal(codes, np.concatenate([u.codes["units"] for u in spoken], axis=1))
    (sample,) = lay(
        "units", spoken, SINGLE, says="speech", listen_weight=0.25, marks=["<|audio_start|>", "<|audio_end|>"]
    )
    assert weights(sample, SINGLE)[:5] == [
        ("<unit>", 0),
        ("<|audio_start|>", 0),
        (50, 0),
        ("<|audio_end|>", 0),
        ("<|listen|>", 0.25),
    ]
    assert "Over" not in "".join(str(part) for part in said(sample, SINGLE))


def test_units_of_a_recording_overlap_in_time():
    """Two channels of one recording: both speak in the third second."""
    heard = speak(SINGLE, 3.0, RNG, "", channel=0, start=10.0, key="1")
    answer = speak(SINGLE, 0.5, RNG, "Yes", channel=1, start=12.2, key="2")
    (sample,) = lay("units", [heard, answer], SINGLE, clock="recording")
    assert said(sample, SINGLE) == [
        "<unit>", 50, "<|listen|>", "<unit>", 50, "<|listen|>", "<unit>", 50, "<|speak|>", "Yes", "<|endoftext|>"
    ]  # fmt: skip


def test_units_of_a_document_that_lacks_something_are_none():
    question, answer = conversation()
    bare = replace(question, features={})
    assert lay("units", [question], SINGLE) == [] == lay("units", [bare, answer], SINGLE, encoder="whisper")
    assert lay("units", [question, replace(answer, codes={})], SINGLE, says="speech") == []
    assert lay("units", [question, replace(answer, text="", words=())], SINGLE) == []
    untimed = lay("units", [question, replace(answer, words=())], SINGLE)[0]
    assert "Over many waters." in said(untimed, SINGLE)


@pytest.mark.parametrize(
    "options, message",
    [({"says": "song"}, "says must be"), ({"clock": "wall"}, "clock must be"), ({"stride": 0}, "stride from 1"),
     ({"seconds": 0.0}, "above 0"), ({"listen_weight": -1.0}, "listen_weight")],
)  # fmt: skip
def test_options_of_units_that_cannot_be(options, message):
    with pytest.raises(BadInput, match=message):
        lay("units", [], SINGLE, **options)


def test_what_a_layout_makes_is_known_before_any_document_is_read():
    def columns(name, vocabulary, **options):
        return find_layout(name, options).columns(vocabulary)

    assert [columns("csm", MIMI), columns("channels", SINGLE), columns("asr", GROUPED)] == [33, 2, 1]
    assert columns("intlv", RESIDUAL, frames=True) == 5
