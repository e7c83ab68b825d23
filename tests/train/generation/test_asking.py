"""What is kept of a teacher, against its own logits; carried to other vocabularies; found again beside shards."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec import structs

from data_pipeline.answers import TARGET, Answers, SourceAnswers, Teacher, answers_file, checksum, write_answers
from data_pipeline.batch import Sample
from data_pipeline.layouts import find_layout
from data_pipeline.packing import fill_packs, split_long
from data_pipeline.vocabulary import Codebook
from runtime.exits import BadInput
from tests.data_pipeline.synthetic import make_utterance, make_vocabulary
from tests.data_pipeline.test_text_to_code import save_model
from train.generation.asking import OneDevice, carried, plain
from train.generation.matching import same_ids

VOCABULARY = make_vocabulary()
# The same tokens under other ids: special tokens turned round and one more of them, codebooks turned round.
OTHER = replace(VOCABULARY, specials=("<|more|>", *VOCABULARY.specials[::-1]), codebooks=VOCABULARY.codebooks[::-1])


def samples() -> list[Sample]:
    rng = np.random.default_rng(0)
    return find_layout("tts", {})([make_utterance(rng, f"u{n}", "d") for n in range(3)], VOCABULARY, rng)


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> OneDevice:
    from data_pipeline.exported_model import load_exported

    folder = save_model(tmp_path_factory.mktemp("teacher"), VOCABULARY)
    return OneDevice(load_exported(folder, "teacher", VOCABULARY.size), VOCABULARY, 5, 1.5)


def test_answers_are_the_likeliest_tokens_of_what_is_due(oracle: OneDevice) -> None:
    questions = [plain(sample) for sample in samples()]
    together = oracle.answer(questions, np.arange(VOCABULARY.size))
    for question, answers in zip(questions, together, strict=True):
        sample = question.sample
        assert answers.places.tolist() == [t for t in range(len(sample) - 1) if sample.loss_weight[t + 1] > 0]
        with torch.no_grad():
            logits = oracle.model(input_ids=torch.from_numpy(sample.tokens)[None]).logits[0].double() / 1.5
        for row, place in enumerate(answers.places):
            label = int(sample.tokens[place + 1])
            (due,) = [table for table in VOCABULARY.tables if label in table]
            p = logits[place, due.start : due.stop].softmax(0)
            wanted = p.topk(5)
            assert answers.ids[row].tolist() == (wanted.indices + due.start).tolist()
            assert np.allclose(answers.log_chances[row], wanted.values.log(), atol=4e-3)
            assert answers.rest[row] == pytest.approx(1 - wanted.values.sum().item(), abs=1e-3)
        target = answers.target(len(sample))
        assert np.allclose(target.weight.sum(1)[answers.places], 1, atol=1e-6) and target.values.shape == (
            len(sample),
            6,
        )
        silent = np.setdiff1d(np.arange(len(sample)), answers.places)
        assert not target.weight[silent].any() and (target.values[silent] == -1).all()


def test_a_teacher_with_other_ids_says_the_same(oracle: OneDevice) -> None:
    """Its rows are those of the oracle, moved to where its vocabulary has the tokens."""
    same = same_ids(OTHER, VOCABULARY)
    assert same[OTHER.special("<|more|>")] == -1 and sorted(same[same >= 0]) == list(range(VOCABULARY.size))
    model = copy.deepcopy(oracle.model)
    for part, ours in (
        (model.get_input_embeddings(), oracle.model.get_input_embeddings()),
        (model.get_output_embeddings(), oracle.model.get_output_embeddings()),
    ):
        moved = torch.full((OTHER.padded_size, ours.weight.shape[1]), -1.0)
        moved[: OTHER.size][same >= 0] = ours.weight.data[torch.from_numpy(same[same >= 0])]
        part.weight = torch.nn.Parameter(moved)
    other = OneDevice(model, OTHER, 5, 1.5)
    rng = np.random.default_rng(0)
    theirs = find_layout("tts", {})([make_utterance(rng, f"u{n}", "d") for n in range(3)], OTHER, rng)
    for sample, written in zip(samples(), theirs, strict=True):
        question = carried(sample, replace_groups(written, sample, same), same)
        assert question is not None
        (found,), (wanted,) = other.answer([question], same), oracle.answer([plain(sample)], np.arange(VOCABULARY.size))
        audio = sample.modality[wanted.places + 1] > 0
        assert np.array_equal(found.places, wanted.places)
        assert np.array_equal(found.ids[audio], wanted.ids[audio])
        assert np.allclose(found.log_chances[audio].astype(float), wanted.log_chances[audio], atol=4e-3)
        for row in np.flatnonzero(~audio):  # one more token to choose, which the student lacks, counts among the others
            assert set(found.ids[row]) - {-1} <= {*wanted.ids[row], -1, *range(VOCABULARY.tables[0].stop)}


def replace_groups(theirs: Sample, ours: Sample, same: np.ndarray) -> Sample:
    """`ours` in the other vocabulary's ids: whose own groups have the codebooks in another order."""
    back = np.full(VOCABULARY.size, -1, np.int64)
    back[same[same >= 0]] = np.flatnonzero(same >= 0)
    return structs.replace(theirs, tokens=back[ours.tokens], loss_weight=ours.loss_weight, modality=ours.modality)


def test_where_texts_are_written_differently_audio_alone_is_asked_about() -> None:
    sample = samples()[0]
    sample = structs.replace(sample, loss_weight=np.ones(len(sample), np.float32))  # loss on the text too
    longer = np.concatenate([sample.tokens[:1], sample.tokens])  # as if another tokenizer had cut it otherwise
    theirs = structs.replace(sample, tokens=longer, loss_weight=np.ones(len(longer), np.float32),
                     modality=VOCABULARY.modality_of(longer))  # fmt: skip
    question = carried(sample, theirs, np.arange(VOCABULARY.size))
    assert question is not None and np.array_equal(question.places, question.student_places + 1)
    assert (sample.modality[question.student_places + 1] > 0).all()
    other_codes = structs.replace(theirs, tokens=np.where(theirs.modality > 0, longer - 1, longer))
    assert carried(sample, other_codes, np.arange(VOCABULARY.size)) is None
    assert carried(sample, None, np.arange(VOCABULARY.size)) is None


def test_codebooks_of_another_size_are_refused() -> None:
    other = replace(VOCABULARY, codebooks=(Codebook("linguistic", 8, 16.67, 2), VOCABULARY.codebooks[1]))
    with pytest.raises(BadInput, match="codebook linguistic of 8 is not among"):
        same_ids(other, VOCABULARY)


# --- beside shards ----------------------------------------------------------------------------------------------------


def test_answers_are_found_by_key_go_through_packs_and_leave_other_draws(oracle: OneDevice, tmp_path: Path) -> None:
    laid = samples()
    answers = oracle.answer([plain(sample) for sample in laid], np.arange(VOCABULARY.size))
    file = answers_file(tmp_path, "tts", "train/shard-000000.tar")
    held = {sample.key: (checksum(sample), said) for sample, said in zip(laid, answers, strict=True)}
    write_answers(file, held, VOCABULARY, 5)
    kept = SourceAnswers(tmp_path, "tts")
    attached = [kept.attach(sample, "train/shard-000000.tar") for sample in laid]
    for sample, said in zip(attached, answers, strict=True):
        wanted, found = said.target(len(sample)), sample.targets[TARGET]
        assert np.array_equal(found.values, wanted.values) and np.array_equal(found.weight, wanted.weight)
    (pack,) = fill_packs([*attached, structs.replace(laid[0], key="new/0")], sum(map(len, laid)) + len(laid[0]), 0)
    start = 0
    for sample, length in zip([*attached, None], pack.lengths, strict=True):
        part = pack.targets[TARGET].weight[start : start + length]
        assert np.array_equal(part, sample.targets[TARGET].weight) if sample is not None else not part.any()
        start += length
    drawn = structs.replace(laid[0], tokens=laid[0].tokens[::-1].copy())
    assert kept.attach(drawn, "train/shard-000000.tar") is drawn
    piece = split_long(attached[0], len(attached[0]) - 5)[0]
    assert np.array_equal(piece.targets[TARGET].values, attached[0].targets[TARGET].values[: len(piece)])
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(BadInput, match="cannot be read"):
        SourceAnswers(tmp_path, "tts").attach(laid[0], "train/shard-000000.tar")


def test_a_token_that_is_all_of_a_table_leaves_no_tail() -> None:
    one = Answers(
        np.array([0]), np.array([[3, -1]]), np.array([[-0.0005, -np.inf]], np.float16), np.zeros(1, np.float16)
    )
    assert one.target(2).weight.tolist() == [[1, 0, 0], [0, 0, 0]]


def test_a_teacher_that_was_asked_otherwise_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no stage has asked a teacher there"):
        Teacher.open(tmp_path)
    asked = {"corpus": "a", "layout": "tts", "options": {}}
    content = {
        "format": 1,
        "temperature": 1.0,
        "top_k": 5,
        "vocabulary": VOCABULARY.describe(),
        "sources": {"tts": asked},
    }
    (tmp_path / "answers.json").write_text(json.dumps(content))
    teacher = Teacher.open(tmp_path)
    teacher.of_source("tts", asked, VOCABULARY)
    for name, described, vocabulary, line in (
        ("tts", {**asked, "corpus": "b"}, VOCABULARY, 'asked with corpus = "a", and here it is "b"'),
        ("asr", asked, VOCABULARY, "source asr: the teacher was asked about tts alone"),
        ("tts", asked, OTHER, "in another vocabulary"),
    ):
        with pytest.raises(BadInput, match=line):
            teacher.of_source(name, described, vocabulary)
