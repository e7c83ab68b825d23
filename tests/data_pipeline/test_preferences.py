"""Preferences from JSON lines to batches: pairs stay together, and their answers see nothing of each other."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import SpeechSourceConfig
from data_pipeline.batch import Sample, collate
from data_pipeline.layouts import find_layout
from data_pipeline.packing import fill_packs
from data_pipeline.sources.recording import Recording, UnreadableAudio
from data_pipeline.sources.speech import open_speech_source
from data_pipeline.sources.speech.places import FileStretch, Written
from runtime.exits import BadInput
from tests.data_pipeline.layout_material import lay, said
from tests.data_pipeline.pairs import make_pair, vocabulary

VOCABULARY = vocabulary()


def recordings(folder: Path, *lines: Any, **options: Any) -> list[Recording]:
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return list(open_speech_source(SpeechSourceConfig("preferences", str(file), options=options)).recordings())


def turns(found: list[Recording]) -> list[tuple[str, str]]:
    return [(segment.role, segment.text) for recording in found for segment in recording.segments]


def test_a_line_is_a_prompt_and_two_answers_in_any_of_the_usual_forms(tmp_path: Path) -> None:
    spoken = {"role": "user", "content": "What day?", "audio": "q.wav"}
    answer, other = {"role": "assistant", "content": "Monday."}, {"role": "assistant", "content": "Pardon?"}
    expected = [("human", "What day?"), ("chosen", "Monday."), ("rejected", "Pardon?")]
    plain = recordings(tmp_path, {"id": "a", "prompt": "What day?", "chosen": "Monday.", "rejected": "Pardon?"})
    assert turns(plain) == expected and {one.document for one in plain} == {"a"}
    assert [one.audio for one in plain] == [Written(str(tmp_path / "pairs.jsonl"))] * 3
    explicit = {"prompt": [spoken], "chosen": [answer], "rejected": other}
    implicit = {"chosen": [spoken, answer], "rejected": [spoken, other]}
    for line in (explicit, implicit):
        found = recordings(tmp_path, line, text="content")
        assert turns(found) == expected and found[0].audio == FileStretch(str(tmp_path / "q.wav"))


@pytest.mark.parametrize(
    "line, kind, message",
    [
        ({"prompt": "a", "chosen": "b"}, "conversation", "no list of messages in rejected"),
        ({"chosen": "b", "rejected": "c"}, "conversation", "no prompt, and chosen and rejected do not begin alike"),
        ({"prompt": "a", "chosen": [{"role": "user", "text": "b"}], "rejected": "c"}, "role", "has the role human"),
        ({"prompt": "a", "chosen": "", "rejected": "c"}, "conversation", "neither text nor audio"),
    ],
)
def test_a_damaged_pair_is_told_by_its_number(tmp_path: Path, line: Any, kind: str, message: str) -> None:
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    found = recordings(tmp_path, good, line)
    source = open_speech_source(SpeechSourceConfig("preferences", str(tmp_path / "pairs.jsonl")))
    with pytest.raises(UnreadableAudio, match=f"line 2: .*{message}") as caught:
        source.sound(found[3])
    assert caught.value.kind == kind


def test_a_pair_is_the_chat_twice_with_loss_on_the_answers_alone() -> None:
    utterances = make_pair(np.random.default_rng(0), "d")
    (pair,) = lay("preferences", utterances, VOCABULARY, form="TQTA")
    question, chosen, rejected = (utterance.text for utterance in utterances)
    before = ["<|BOT|>", f"human\n{question}", "<|EOT|>", "<|BOT|>"]
    texts = [[*before, f"assistant\n{answer}", "<|EOT|>"] for answer in (chosen, rejected)]
    assert said(pair, VOCABULARY) == texts[0] + texts[1]
    for role, start in (("chosen", 0), ("rejected", pair.segments[0])):
        answer = next(utterance for utterance in utterances if utterance.role == role)
        (alone,) = lay("chat", [utterances[0], replace(answer, role="assistant")], VOCABULARY, form="TQTA")
        for name in ("tokens", "loss_weight", "modality"):
            part = getattr(pair, name)[start : start + len(alone)]
            np.testing.assert_array_equal(part, getattr(alone, name))
    assert sum(pair.segments) == len(pair) and len(set(pair.group.tolist())) == 1


def test_documents_without_two_answers_give_no_pair() -> None:
    question, chosen, rejected = make_pair(np.random.default_rng(0), "d")
    same = replace(rejected, text=chosen.text)
    for utterances in ([question, chosen], [question, rejected], [question, chosen, same], [chosen, rejected]):
        assert lay("preferences", utterances, VOCABULARY, form="TQTA") == []
    with pytest.raises(BadInput, match="option loss is last"):
        lay("preferences", [question], VOCABULARY, loss="all")
    with pytest.raises(BadInput, match="layout preferences has no option 'pairs'"):
        find_layout("preferences", {"pairs": 1})


@given(
    lengths=st.lists(st.tuples(st.integers(2, 15), st.integers(0, 15)), min_size=1, max_size=12),
    packs=st.integers(1, 3),
)
@settings(max_examples=60)
def test_pairs_stay_whole_and_their_segments_apart(lengths: list[tuple[int, int]], packs: int) -> None:
    """Samples of one segment among those of two, packed and collated: every segment is found again, with positions from
    0, and no place has a label of another."""
    rng = np.random.default_rng(1)
    samples = []
    for number, (first, second) in enumerate(lengths):
        size = first + second
        tokens, ones = rng.integers(0, 900, size), np.ones(size, np.float32)
        segments = (first, second) if second else ()
        nothing = np.zeros(size, np.uint8)
        samples.append(Sample(tokens, ones, nothing, nothing.astype(np.int32), f"s/0/{number}/0", segments=segments))
    filled = fill_packs(samples, 32, 999)
    found: dict[str, list[list[int]]] = {}
    for start in range(0, len(filled), packs):
        batch = collate(filled[start : start + packs])
        bounds = batch.cu_seqlens.tolist()
        for begin, end in pairwise(bounds):
            assert batch.positions[0, begin:end].tolist() == list(range(end - begin))
            assert batch.loss_weight[0, end - 1] == 0
            real = batch.loss_weight[0, begin : end - 1] > 0
            assert (batch.labels[0, begin : end - 1] == batch.tokens[0, begin + 1 : end])[real].all()
        assert batch.longest == max(np.diff(bounds)) and bounds[-1] == batch.tokens.shape[1]
        if batch.pairs:
            for key, two in zip(batch.pairs.keys, batch.pairs.segments.tolist(), strict=True):
                found[key] = [batch.tokens[0, bounds[one] : bounds[one + 1]].tolist() for one in two]
    expected = {
        sample.key: [sample.tokens[: sample.segments[0]].tolist(), sample.tokens[sample.segments[0] :].tolist()]
        for sample in samples
        if sample.segments
    }
    assert found == expected
