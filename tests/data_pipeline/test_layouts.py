from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.layouts import find_layout
from data_pipeline.layouts.groups import check_codes, lay_groups, ungroup
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Codebook, Vocabulary
from runtime.exits import BadInput
from tests.data_pipeline.synthetic import make_utterance, make_vocabulary

VOCABULARY = make_vocabulary()
STEP_AUDIO = Vocabulary(
    text_size=65536,
    specials=(),
    codebooks=(Codebook("linguistic", 1024, 16.67, per_group=2), Codebook("semantic", 4096, 25.0, per_group=3)),
    tokenizer_json=VOCABULARY.tokenizer_json,
)


def lay(name: str, utterances, seed: int = 0, **options):
    return find_layout(name, options)(utterances, VOCABULARY, np.random.default_rng(seed))


def document(seed: int, utterances: int = 3, unspoken: int | None = None) -> list[Utterance]:
    rng = np.random.default_rng(seed)
    return [make_utterance(rng, f"doc-{i}", "doc", spoken=i != unspoken) for i in range(utterances)]


def readable(sample) -> list[str]:
    """Special tokens by name, runs of text as text, each group of codes as "G"."""
    ids = sample.tokens.tolist()
    parts: list[str] = []
    at = 0
    while at < len(ids):
        if sample.modality[at]:
            parts.append("G")
            at += 5
        elif ids[at] >= VOCABULARY.text_size or VOCABULARY.token_name(ids[at]) == "<|endoftext|>":
            parts.append(VOCABULARY.token_name(ids[at]))
            at += 1
        else:
            end = at
            while (
                end < len(ids) and ids[end] < VOCABULARY.text_size and ids[end] != VOCABULARY.special("<|endoftext|>")
            ):
                end += 1
            parts.append(VOCABULARY.decode_text(ids[at:end]))
            at = end
    return parts


# --- groups -----------------------------------------------------------------------------------------------------


def test_step_audio_worked_example():
    codes = {"linguistic": np.array([[12, 700, 9]]), "semantic": np.array([[5, 4000, 33, 1, 2]])}  # tail dropped
    utterance = Utterance(key="u", text="", document="d", codes=codes)
    assert lay_groups(utterance, STEP_AUDIO).tolist() == [[65548, 66236, 66565, 70560, 66593]]
    assert STEP_AUDIO.group_seconds == pytest.approx(0.12)


@given(linguistic=st.integers(0, 40), semantic=st.integers(0, 60), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_ungroup_gives_back_whole_groups(linguistic, semantic, seed):
    rng = np.random.default_rng(seed)
    codes = {"linguistic": rng.integers(0, 1024, (1, linguistic)), "semantic": rng.integers(0, 4096, (1, semantic))}
    laid = lay_groups(Utterance(key="u", text="", document="d", codes=codes), STEP_AUDIO)
    groups = min(linguistic // 2, semantic // 3)
    assert laid.shape == (groups, 5)
    back = ungroup(laid.reshape(-1), STEP_AUDIO)
    np.testing.assert_array_equal(back["linguistic"], codes["linguistic"][:, : 2 * groups])
    np.testing.assert_array_equal(back["semantic"], codes["semantic"][:, : 3 * groups])


def test_any_ordered_codebooks():
    books = (Codebook("a", 4, 50.0, per_group=4), Codebook("b", 8, 12.5), Codebook("c", 8, 25.0, per_group=2))
    vocabulary = replace(STEP_AUDIO, text_size=100, codebooks=books)
    codes = {"a": np.arange(8)[None] % 4, "b": np.array([[7, 6]]), "c": np.array([[1, 2, 3, 4]])}
    laid = lay_groups(Utterance(key="u", text="", document="d", codes=codes), vocabulary)
    assert laid.tolist() == [[100, 101, 102, 103, 111, 113, 114], [100, 101, 102, 103, 110, 115, 116]]


@pytest.mark.parametrize("position, token", [(0, 66565), (1, 3), (4, 65548), (5, 70656), (7, 66236)])
def test_ungroup_names_the_position_that_is_out_of_phase(position, token):
    ids = np.array([65548, 66236, 66565, 70560, 66593] * 2)
    ids[position] = token
    with pytest.raises(BadInput, match=f"position {position} "):
        ungroup(ids, STEP_AUDIO)


def test_ungroup_refuses_half_a_group():
    with pytest.raises(BadInput, match="inside a group"):
        ungroup(np.array([65548, 66236, 66565]), STEP_AUDIO)


@pytest.mark.parametrize("codes", [{"semantic": [[1]]}, {"semantic": [[1]], "linguistic": [[1], [2]]},
                                   {"semantic": [[64]], "linguistic": [[1]]}])  # fmt: skip
def test_codes_that_do_not_fit_the_vocabulary_are_refused(codes):
    arrays = {name: np.array(rows) for name, rows in codes.items()}
    with pytest.raises(BadInput, match="utterance u"):
        check_codes(Utterance(key="u", text="", document="d", codes=arrays), VOCABULARY)


# --- every layout -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["asr", "continuation", "interleaved", "text", "tts"])
@given(seed=st.integers(0, 10_000), utterances=st.integers(1, 4), unspoken=st.none() | st.integers(0, 3))
@settings(max_examples=15)
def test_what_holds_for_every_layout(name, seed, utterances, unspoken):
    spoken = document(seed, utterances, unspoken)
    samples = lay(name, spoken, seed)
    again = lay(name, spoken, seed)
    assert len({sample.key for sample in samples}) == len(samples)
    for sample, same in zip(samples, again, strict=True):
        arrays = (sample.tokens, sample.loss_weight, sample.modality, sample.group)
        assert [array.dtype for array in arrays] == [np.int64, np.float32, np.uint8, np.int32]
        assert {len(array) for array in arrays} == {len(sample)}
        np.testing.assert_array_equal(sample.tokens, same.tokens)
        np.testing.assert_array_equal(sample.modality, VOCABULARY.modality_of(sample.tokens))
        assert sample.tokens[-1] == VOCABULARY.special("<|endoftext|>")
        assert sample.loss_weight[-1] == 1
        assert sample.key.startswith("doc/")

        audio = sample.modality > 0
        sizes = np.bincount(sample.group)
        assert np.all(sizes[np.unique(sample.group[audio])] == 5)
        assert np.all(sizes[np.unique(sample.group[~audio])] == 1)
        assert np.all(np.isin(np.diff(sample.group), (0, 1)))
        ungroup(sample.tokens[audio], VOCABULARY)  # raises if out of phase
        assert sample.audio_seconds == pytest.approx(audio.sum() / 5 * 0.12)


def test_asr():
    utterance = document(1, 1)[0]
    (sample,) = lay("asr", [utterance])
    groups = len(lay_groups(utterance, VOCABULARY))
    assert readable(sample) == [
        "<|audio_start|>", *"G" * groups, "<|audio_end|>", "<|transcribe|>", utterance.text, "<|endoftext|>"
    ]  # fmt: skip
    heard = 5 * groups + 3
    assert np.all(sample.loss_weight[:heard] == 0) and np.all(sample.loss_weight[heard:] == 1)
    (weighted,) = lay("asr", [utterance], audio_weight=0.25)
    assert np.all(weighted.loss_weight[:heard] == 0.25) and np.all(weighted.loss_weight[heard:] == 1)


def test_tts():
    utterance = document(2, 1)[0]
    (sample,) = lay("tts", [utterance], text_weight=0.5)
    groups = len(lay_groups(utterance, VOCABULARY))
    assert readable(sample) == [
        utterance.text, "<|speak|>", "<|audio_start|>", *"G" * groups, "<|audio_end|>", "<|endoftext|>"
    ]  # fmt: skip
    read = len(VOCABULARY.encode_text(utterance.text)) + 1
    assert np.all(sample.loss_weight[:read] == 0.5) and np.all(sample.loss_weight[read:] == 1)


def test_paired_layouts_skip_what_has_no_pair():
    mixed = document(3, 3, unspoken=1)
    mixed.append(replace(mixed[0], key="silent", text=""))
    for name in ("asr", "tts"):
        assert [sample.key for sample in lay(name, mixed)] == ["doc/doc-0", "doc/doc-2"]


def test_continuation_runs_through_the_document():
    spoken = document(4, 3, unspoken=1)
    (sample,) = lay("continuation", spoken)
    groups = sum(len(lay_groups(utterance, VOCABULARY)) for utterance in spoken)
    assert readable(sample) == ["<|audio_start|>", *"G" * groups, "<|audio_end|>", "<|endoftext|>"]
    assert lay("continuation", [replace(u, codes={}) for u in spoken]) == []


def test_text_takes_spoken_and_unspoken():
    mixed = document(5, 2, unspoken=1)
    (sample,) = lay("text", mixed)
    assert readable(sample) == [f"{mixed[0].text} {mixed[1].text}", "<|endoftext|>"]
    assert lay("text", []) == []


def test_interleaved_says_or_writes_everything_once():
    """Undoing the spoken spans with the word times gives the document's words back, in order."""
    spoken = document(6, 4)
    (sample,) = lay("interleaved", spoken, seed=2, shortest=2, longest=4)
    parts = readable(sample)
    assert parts.count("<|audio_start|>") == parts.count("<|audio_end|>") >= 2
    written = " ".join(part.strip() for part in parts if part != "G" and not part.startswith("<|"))
    whole = " ".join(u.text for u in spoken)
    assert 0 < len(written) < len(whole)
    words = iter(whole.split())
    assert all(word in words for word in written.split())  # an ordered selection of the words
    # 0.3 s a word: the spoken words and the groups agree to the rounding of each span's ends
    said = len(whole.split()) - len(written.split())
    assert parts.count("G") * 0.12 == pytest.approx(0.3 * said, abs=0.12 * 2 * parts.count("<|audio_start|>") + 0.5)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_interleaved_share_of_spoken_words(share):
    groups = total = 0
    for seed in range(60):
        spoken = document(seed, 4)
        (sample,) = lay("interleaved", spoken, seed, spoken_share=share, shortest=2, longest=5)
        groups += int((sample.modality > 0).sum()) // 5
        total += sum(len(lay_groups(u, VOCABULARY)) for u in spoken)
    assert groups / total == pytest.approx(share, abs=0.05)


def test_interleaved_span_without_times_is_spoken_or_written_whole():
    utterance = replace(document(7, 1)[0], words=())
    forms = {tuple(part for part in readable(lay("interleaved", [utterance], seed)[0])) for seed in range(20)}
    assert (utterance.text, "<|endoftext|>") in forms
    assert len(forms) == 2


def test_interleaved_words_that_are_not_in_the_text_stand_for_themselves():
    utterance = replace(document(8, 1)[0], text="Nothing of the kind 123")
    (sample,) = lay("interleaved", [utterance], spoken_share=0.0)
    assert readable(sample)[0] == " ".join(word.text for word in utterance.words)


# --- registry ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("karaoke", {}, "choose from asr, asr_dialogue, channels, chat"),
        ("asr", {"text_weight": 1.0}, "has audio_weight"),
        ("text", {"speed": 2}, "it has frames"),
        ("interleaved", {"shortest": 2.5}, "must be a number like 4"),
        ("asr", {"audio_weight": "much"}, "must be a number"),
        ("asr", {"audio_weight": True}, "must be a number"),
    ],
)
def test_unknown_layouts_and_options_are_one_line_with_the_choices(name, options, message):
    with pytest.raises(BadInput, match=message):
        find_layout(name, options)


@pytest.mark.parametrize(
    "name, options",
    [
        ("asr", {"audio_weight": -1}),
        ("tts", {"text_weight": -0.1}),
        ("interleaved", {"shortest": 5, "longest": 4}),
        ("interleaved", {"shortest": 0}),
        ("interleaved", {"spoken_share": 1.5}),
    ],
)
def test_values_out_of_range_are_refused(name, options):
    with pytest.raises(BadInput):
        lay(name, [], **options)
