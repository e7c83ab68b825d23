"""Codes from text alone: only where they can stand, from the seed alone, and a corpus of them that trains."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from configs.schema import CodebookConfig, CodecConfig, Config, CorpusConfig, SynthesisConfig
from data_pipeline.build import build_corpus
from data_pipeline.corpus import Corpus
from data_pipeline.drawing import Drawing, Sampling, grammar_of_codes
from data_pipeline.layouts.groups import group_length, ungroup
from data_pipeline.loader import make_loader
from data_pipeline.shards import ShardReader
from data_pipeline.speech.text_to_code import AUDIO_END, TextToCode
from data_pipeline.vocabulary import Codebook, Vocabulary
from runtime.exits import BadInput
from tests.data_pipeline.synthetic import SENTENCE, make_config, make_corpus, make_vocabulary

# Few codes, so that a random model soon draws the end.
BOOKS = (Codebook("linguistic", 4, 16.67, 2), Codebook("semantic", 8, 25.0, 3))
VOCABULARY = replace(make_vocabulary(), codebooks=BOOKS)
END = VOCABULARY.special(AUDIO_END)
TEXTS = ["in the beginning", SENTENCE, "a word went out over many waters", "slowly", SENTENCE[20:60]]


def save_model(folder: Path, vocabulary: Vocabulary = VOCABULARY, head: int = 8) -> Path:
    """A random Llama with the rows of `vocabulary` and heads of that size, saved as an export is."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary.padded_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head,
        initializer_range=0.4,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    vocabulary.save(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("lm"))


@pytest.fixture(scope="module")
def model(folder: Path) -> TextToCode:
    return TextToCode(str(folder), SynthesisConfig(seconds_per_character=0.05), VOCABULARY)


def same(a: dict[str, np.ndarray] | None, b: dict[str, np.ndarray] | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_codes_follow_text_and_seed_and_not_the_batch(model: TextToCode) -> None:
    seeds = [11, 22, 33, 44, 55]
    together = model.speak(TEXTS, seeds)
    assert sum(codes is not None for codes in together) >= 3
    alone = [model.speak([text], [seed])[0] for text, seed in zip(TEXTS, seeds, strict=True)]
    turned = model.speak(TEXTS[::-1], seeds[::-1])[::-1]
    assert all(map(same, together, alone)) and all(map(same, together, turned))
    other = model.speak(TEXTS, [seed + 1 for seed in seeds])
    assert sum(map(same, together, other)) <= 2  # what has not ended is the same None


def test_codes_are_whole_groups_in_range(model: TextToCode) -> None:
    for codes in filter(None, model.speak(TEXTS * 2, list(range(10)))):
        frames = {name: rows.shape for name, rows in codes.items()}
        groups = frames["linguistic"][1] // 2
        assert frames == {"linguistic": (1, 2 * groups), "semantic": (1, 3 * groups)} and groups >= 1
        assert codes["linguistic"].max() < 4 and codes["semantic"].max() < 8 and min(map(np.min, codes.values())) >= 0
        assert model.seconds(codes) == pytest.approx(groups * VOCABULARY.group_seconds)


def test_speech_that_does_not_end_is_none(folder: Path) -> None:
    short = TextToCode(str(folder), SynthesisConfig(seconds_per_character=0.12 / len(SENTENCE)), VOCABULARY)
    assert short.speak([SENTENCE], [3]) == [None]


def test_sampling_is_that_of_the_softmax() -> None:
    """Drawn shares against probabilities in float64 by numpy: 3 sigma of a binomial for every code."""
    rng = np.random.default_rng(0)
    rows = 20_000
    logits = rng.normal(size=VOCABULARY.size)
    drawing = Drawing(
        grammar_of_codes(VOCABULARY, END), Sampling(temperature=0.7), prompt=1, most=[9] * rows, seeds=range(rows)
    )
    scores = torch.from_numpy(logits).float().repeat(rows, 1)
    left = drawing(torch.zeros(rows, 1, dtype=torch.long), scores)
    assert (torch.isfinite(left).sum(1) == 1).all()
    drawn = left.argmax(1).numpy() - VOCABULARY.ranges["linguistic"].start
    wanted = np.exp(logits[VOCABULARY.ranges["linguistic"]].astype(np.float32).astype(np.float64) / 0.7)
    wanted /= wanted.sum()
    found = np.bincount(drawn, minlength=4) / rows
    assert np.all(np.abs(found - wanted) < 3.5 * np.sqrt(wanted * (1 - wanted) / rows) + 1e-4)


def test_top_p_keeps_the_likeliest() -> None:
    start = VOCABULARY.ranges["linguistic"].start
    scores = torch.full((400, VOCABULARY.size), -50.0)
    scores[:, start : start + 4] = torch.log(torch.tensor([0.1, 0.4, 0.3, 0.2]))
    drawing = Drawing(
        grammar_of_codes(VOCABULARY, END), Sampling(top_p=0.65), prompt=1, most=[9] * 400, seeds=range(400)
    )
    drawn = drawing(torch.zeros(400, 1, dtype=torch.long), scores).argmax(1) - start
    assert set(drawn.tolist()) == {1, 2}


RESIDUAL = Vocabulary(
    text_size=VOCABULARY.text_size,
    specials=VOCABULARY.specials,
    codebooks=(Codebook("first", 8, 12.5), Codebook("rest", 5, 12.5, rows=3)),
    tokenizer_json=VOCABULARY.tokenizer_json,
)


@given(st.sampled_from([VOCABULARY, RESIDUAL]), st.integers(0, 2**32), st.integers(1, 4))
def test_whatever_the_scores_only_what_can_stand_there_is_drawn(vocabulary: Vocabulary, seed: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    end, length = vocabulary.special(AUDIO_END), group_length(vocabulary)
    prompt = rng.integers(0, vocabulary.text_size, (1, 3))
    drawing = Drawing(grammar_of_codes(vocabulary, end), Sampling(), prompt=3, most=[most], seeds=[seed])
    ids = torch.from_numpy(prompt)
    while ids[0, -1] != end:
        scores = torch.from_numpy(rng.normal(0, 20, (1, vocabulary.padded_size))).float()
        scores[0, : vocabulary.text_size] += 100  # a model that wants to write
        ids = torch.cat([ids, drawing(ids, scores).argmax(1)[:, None]], 1)
    said = ids[0, 3:-1].numpy()
    assert 1 <= len(said) // length <= most and len(said) % length == 0
    codes = ungroup(said, vocabulary)  # raises for a token out of turn
    assert [rows.shape[0] for rows in codes.values()] == [book.rows for book in vocabulary.codebooks]
    assert len(grammar_of_codes(vocabulary, end).tables) == length


def lm_config(cache: Path, folder: Path) -> Config:
    config = make_config({"interleaved": 1.0})
    config.run.cache = str(cache)
    (cache / "tokenizer").mkdir(parents=True)
    (cache / "tokenizer" / "tokenizer.json").write_text(VOCABULARY.tokenizer_json)
    config.backbone.tokenizer = str(cache / "tokenizer")
    config.codec = CodecConfig(
        name="dual",
        weights={"encoder": str(cache / "not-needed")},
        codebooks={book.name: CodebookConfig(size=book.size, rate=book.rate, layer=1) for book in BOOKS},
        group={book.name: book.per_group for book in BOOKS},
    )
    config.corpus = CorpusConfig(
        name="from-text",
        voice=f"lm:{folder}",
        speech_minutes=0.6,
        shard_minutes=0.2,
        text_characters=1000,
        validation_share=0.2,
        workers=1,
        synthesis=SynthesisConfig(batch=8),
    )
    return config


def test_corpus_of_codes_without_sound_is_laid_out_and_read(folder: Path, tmp_path: Path) -> None:
    config = lm_config(tmp_path / "cache", folder)
    learnt_from = Corpus.open(make_corpus(tmp_path / "learnt-from", vocabulary=VOCABULARY))
    config.corpus.synthesis.codes_of = str(learnt_from.folder)
    corpus = Corpus.open(build_corpus(config))
    assert corpus.vocabulary == VOCABULARY
    described = corpus.codecs["dual"]
    assert "model.safetensors" in described["text_to_code"]
    assert described["codes_of"] == {"content_hash": learnt_from.content_hash, "codecs": learnt_from.codecs}
    with ShardReader(corpus.shards("train")[0]) as reader:
        assert len(reader) and reader.index.spoken.all() and not reader.index.audio_size.any()
        utterance = reader.read(0)
        groups = utterance.codes["semantic"].shape[1] // 3
        assert utterance.duration == pytest.approx(groups * 0.12) and not utterance.words and utterance.text
    loader = make_loader(config, corpus, split="train", rank=0, world=1)
    modalities = np.concatenate([pack.label_modality for pack in loader.next_step()])
    assert {0, 1, 2} <= set(modalities.tolist())
    loader.close()


def test_codes_of_another_corpus_are_refused(folder: Path, tmp_path: Path) -> None:
    config = lm_config(tmp_path / "cache", folder)
    config.corpus.synthesis.codes_of = str(make_corpus(tmp_path / "other"))
    with pytest.raises(BadInput, match=r"codes_of=.*: it has another vocabulary"):
        build_corpus(config)


def test_model_with_another_vocabulary_is_refused(folder: Path, tmp_path: Path) -> None:
    config = lm_config(tmp_path / "cache", folder)
    config.corpus.specials = [*config.corpus.specials, "<|more|>"]
    with pytest.raises(BadInput, match="another vocabulary than this corpus: its specials"):
        build_corpus(config)


@pytest.mark.parametrize("missing", ["vocabulary.json", "model.safetensors", "tokenizer.json"])
def test_model_that_is_not_whole_is_one_line(missing: str, tmp_path: Path) -> None:
    broken = save_model(tmp_path / "lm")
    (broken / missing).unlink()
    with pytest.raises(BadInput, match=r"corpus\.voice"):
        TextToCode(str(broken), SynthesisConfig(), VOCABULARY)


def test_another_text_tokenizer_is_refused(tmp_path: Path) -> None:
    other = save_model(tmp_path / "lm")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = {"a": 0}
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(BadInput, match="another text tokenizer"):
        TextToCode(str(other), SynthesisConfig(), VOCABULARY)
