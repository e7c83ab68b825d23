from __future__ import annotations

import json
import pickle
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers

from data_pipeline.layouts.groups import check_codes
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import VOCABULARY_FILE, Vocabulary
from runtime.exits import BadInput
from tests.data_pipeline.synthetic import LINGUISTIC, SEMANTIC, SPECIALS, make_vocabulary

VOCABULARY = make_vocabulary()


def test_ranges_follow_each_other_without_gap():
    ranges = list(VOCABULARY.ranges.values())
    assert ranges[0].start == 0
    assert all(one.stop == next_.start for one, next_ in pairwise(ranges))
    assert ranges[-1].stop == VOCABULARY.size <= VOCABULARY.padded_size
    assert VOCABULARY.padded_size % VOCABULARY.multiple == 0
    assert VOCABULARY.padded_size - VOCABULARY.size < VOCABULARY.multiple


def test_text_ids_keep_their_place():
    ids = VOCABULARY.encode_text("in the beginning")
    assert max(ids) < VOCABULARY.text_size
    assert VOCABULARY.decode_text(ids) == "in the beginning"


def test_modality_of_every_id():
    modality = VOCABULARY.modality_of(np.arange(VOCABULARY.size))
    assert np.bincount(modality).tolist() == [VOCABULARY.text_size + len(SPECIALS), LINGUISTIC.size, SEMANTIC.size]
    assert np.all(np.diff(modality.astype(int)) >= 0)


def test_special_tokens():
    assert [VOCABULARY.special(name) for name in SPECIALS] == list(VOCABULARY.ranges["special"])
    assert VOCABULARY.special("<|endoftext|>") < VOCABULARY.text_size
    with pytest.raises(BadInput, match="nonsense"):
        VOCABULARY.special("nonsense")


def test_text_inside_a_line_has_no_dummy_space():
    """SentencePiece puts a space before whatever it is given; after a line break or a special token there is none."""
    assert VOCABULARY.encode_inside("in the beginning") == VOCABULARY.encode_text("in the beginning")
    names = ["▁", "a", "b", "▁a", *(f"<0x{byte:02X}>" for byte in range(256))]
    model = models.BPE({name: i for i, name in enumerate(names)}, [("▁", "a")], byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    sentencepiece = replace(VOCABULARY, tokenizer_json=tokenizer.to_str(), text_size=len(names))
    assert [names[i] for i in sentencepiece.encode_text("ab a")] == ["▁a", "b", "▁a"]
    assert [names[i] for i in sentencepiece.encode_inside("ab a")] == ["a", "b", "▁a"]


def test_the_name_of_a_special_token_in_a_text_is_text():
    written = "end <|endoftext|> or <|audio_start|>"
    ids = VOCABULARY.encode_text(written)
    assert not {VOCABULARY.special("<|endoftext|>"), VOCABULARY.special("<|audio_start|>")} & set(ids)
    assert VOCABULARY.decode_text(ids) == written
    assert pickle.loads(pickle.dumps(VOCABULARY)).encode_text(written) == ids  # as a worker process has it


def test_which_special_tokens_there_are():
    assert all(VOCABULARY.has_special(name) for name in (*SPECIALS, "<|endoftext|>"))
    assert not VOCABULARY.has_special("<|nonsense|>")


def test_token_names_are_unique():
    names = [VOCABULARY.token_name(i) for i in range(VOCABULARY.size)]
    assert len(set(names)) == len(names)
    assert names[VOCABULARY.ranges["semantic"].start + 12] == "<|semantic_12|>"
    with pytest.raises(BadInput, match="outside"):
        VOCABULARY.token_name(VOCABULARY.size)


@pytest.mark.parametrize("code", [-1, LINGUISTIC.size])
def test_codes_outside_their_codebook_are_refused(code):
    with pytest.raises(BadInput, match="linguistic"):
        check_codes(Utterance("u", "", "d", codes={"linguistic": np.array([[0, code]])}), VOCABULARY)


def test_ids_that_a_corpus_keeps_are_not_encoded_again():
    vocabulary, text = make_vocabulary(), "in the beginning"
    right = vocabulary.encode_text(text)
    vocabulary.know({text: (1, 2)})
    assert vocabulary.encode_text(text) == [1, 2] and vocabulary.encode_text("in the") == VOCABULARY.encode_text(
        "in the"
    )
    vocabulary.encode_text(text).append(3)
    assert vocabulary.encode_text(text) == [1, 2]
    assert pickle.loads(pickle.dumps(vocabulary)).encode_text(text) == right
    vocabulary.know({})
    assert vocabulary.encode_text(text) == right


def test_saves_and_loads(tmp_path):
    VOCABULARY.save(tmp_path)
    assert Vocabulary.load(tmp_path) == VOCABULARY
    assert json.loads((tmp_path / VOCABULARY_FILE).read_text()) == VOCABULARY.describe()


def test_order_of_codebooks_is_part_of_the_description():
    turned = replace(VOCABULARY, codebooks=VOCABULARY.codebooks[::-1])
    assert turned.describe() != VOCABULARY.describe()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"ranges": {}, "specials": 3}', "\x00"])
def test_damaged_file_is_refused(tmp_path, content):
    VOCABULARY.save(tmp_path)
    (tmp_path / VOCABULARY_FILE).write_text(content)
    with pytest.raises(BadInput, match="damaged"):
        Vocabulary.load(tmp_path)


def test_ranges_that_do_not_add_up_are_refused(tmp_path):
    VOCABULARY.save(tmp_path)
    described = VOCABULARY.describe()
    described["ranges"]["semantic"][1] += 1
    (tmp_path / VOCABULARY_FILE).write_text(json.dumps(described))
    with pytest.raises(BadInput, match="ranges"):
        Vocabulary.load(tmp_path)
