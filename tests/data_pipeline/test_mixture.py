from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import SourceConfig
from data_pipeline.corpus import Corpus
from data_pipeline.damage import DamageTally
from data_pipeline.lanes import Lane
from data_pipeline.mixture import Mixture, open_mixture
from data_pipeline.shards import ShardReader, add_columns, read_index
from runtime.exits import BadInput
from tests.data_pipeline.synthetic import make_config, make_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return Corpus.open(make_corpus(tmp_path_factory.mktemp("corpus") / "c", train_documents=40))


def mixture_of(corpus, weights=None, split="train"):
    return open_mixture(make_config(weights), corpus, split, DamageTally(0.0))


def tokens_of(*lanes: Lane) -> Counter[str]:
    """Tokens that `lanes` have laid, by source."""
    taken: Counter[str] = Counter()
    for lane in lanes:
        taken.update({name: tokens for name, (_, _, tokens) in lane.state()["sources"].items()})
    return taken


NESTED = {
    "speech": SourceConfig(
        weight=4,
        sources={
            "continuation": SourceConfig("continuation", 1),
            "asr": SourceConfig("asr", 1),
            "tts": SourceConfig("tts", 1),
            "inner": SourceConfig(
                weight=1,
                sources={"a": SourceConfig("interleaved", 2), "b": SourceConfig("continuation", 3)},
            ),
        },
    ),
    "interleaved": SourceConfig("interleaved", 3),
    "text": SourceConfig("text", 3),
}


def test_an_epoch_reads_every_document_once_over_all_lanes(corpus):
    (source,) = mixture_of(corpus, {"text": 1.0}).sources
    lanes = 8
    keys: Counter[str] = Counter()
    for lane in range(lanes):
        taken = source.begin(lane, lanes)
        while taken.epoch < 3:
            (sample,), taken = source.read(taken, lane, lanes, 10_000)
            keys[sample.key] += 1
    for epoch in range(3):
        assert sum(key.startswith(f"text/{epoch}/") for key in keys) == 40
    assert len(keys) == 3 * 40 and set(keys.values()) == {1}


def test_order_of_keys_in_the_config_changes_nothing(corpus):
    one = mixture_of(corpus, {"text": 1.0, "asr": 3.0}).describe()
    other = mixture_of(corpus, {"asr": 3.0, "text": 1.0}).describe()
    assert one == other


@given(
    weights=st.dictionaries(
        st.sampled_from(["asr", "continuation", "interleaved", "text", "tts"]), st.floats(0.05, 5.0), min_size=1
    )
)
@settings(max_examples=6)
def test_shares_are_of_tokens_within_one_percent(corpus, weights):
    lane = Lane(0, 4, mixture_of(corpus, weights), length=256, window=8, batch=4)
    while sum((taken := tokens_of(lane)).values()) < 150_000:
        lane.next_pack()
    total = sum(taken.values())
    for name, weight in weights.items():
        assert taken[name] / total == pytest.approx(weight / sum(weights.values()), abs=0.01)


def test_neediest_is_within_one_document_of_its_share(corpus):
    mixture = mixture_of(corpus, {"asr": 1.0, "text": 3.0})
    taken = {source.name: source.begin(0, 1) for source in mixture.sources}
    rng = np.random.default_rng(0)
    for _ in range(500):
        name = mixture.neediest(taken).name
        taken[name] = taken[name]._replace(tokens=taken[name].tokens + int(rng.integers(1, 100)))
        assert abs(taken["asr"].tokens - 0.25 * (taken["asr"].tokens + taken["text"].tokens)) <= 100


@pytest.mark.parametrize(
    "change, message",
    [
        ({}, "no source with a weight above 0"),
        ({"a": SourceConfig("text", 0.0)}, "no source with a weight above 0"),
        ({"a": SourceConfig("text", -1.0), "b": SourceConfig("text", 2.0)}, "below 0"),
        ({"a": SourceConfig("sing", 1.0)}, "source a: unknown layout 'sing'"),
        ({"a": SourceConfig("asr", 1.0, options={"audio_weight": -3})}, "source a: .*cannot be -3"),
        ({"a": SourceConfig("asr", 1.0, corpus="nowhere")}, "nowhere"),
    ],
)
def test_mixtures_that_cannot_be_are_refused_in_one_line(corpus, change, message):
    config = make_config()
    config.mixture.sources = change
    with pytest.raises(BadInput, match=message) as caught:
        open_mixture(config, corpus, "train", DamageTally(0.0))
    assert "\n" not in str(caught.value)


def test_sources_may_have_their_own_corpus_of_the_same_vocabulary(corpus, tmp_path):
    other = make_corpus(tmp_path / "other", train_documents=4, seed=5)
    config = make_config()
    config.mixture.sources = {"a": SourceConfig("text", 1.0), "b": SourceConfig("text", 1.0, corpus=str(other))}
    a, b = open_mixture(config, corpus, "train", DamageTally(0.0)).sources
    assert (len(a.documents), len(b.documents)) == (40, 4)
    foreign = replace(corpus, vocabulary=replace(corpus.vocabulary, multiple=64))
    with pytest.raises(BadInput, match="another vocabulary"):
        open_mixture(config, foreign, "train", DamageTally(0.0))


def test_a_layout_without_documents_is_refused(tmp_path):
    unspoken = Corpus.open(make_corpus(tmp_path / "c", unspoken_every=1))
    assert mixture_of(unspoken, {"text": 1.0})
    with pytest.raises(BadInput, match="no documents with speech in its train split"):
        mixture_of(unspoken, {"asr": 1.0})


# --- nesting ----------------------------------------------------------------------------------------------------


def nested_of(corpus, sources, **loader) -> Mixture:
    config = make_config()
    config.mixture.sources = sources
    for name, value in loader.items():
        setattr(config.loader, name, value)
    return open_mixture(config, corpus, "train", DamageTally(0.0))


def test_shares_hold_within_one_percent_of_a_million_tokens_at_every_level(corpus):
    """4:3:3, with 1:1:1:1 inside and 2:3 inside that, measured in the packs themselves over all lanes."""
    mixture = nested_of(corpus, NESTED)
    lanes = [Lane(number, 4, mixture, length=2048, window=8, batch=4) for number in range(4)]
    laid: Counter[str] = Counter()
    while laid.total() < 1_000_000:
        for lane in lanes:
            pack = lane.next_pack()
            for key, length in zip(pack.keys, pack.lengths, strict=False):  # padding, last, has no key
                laid[key.split("/")[0]] += length
    speech = [f"speech.{name}" for name in ("asr", "continuation", "tts", "inner.a", "inner.b")]
    inner = laid["speech.inner.a"] + laid["speech.inner.b"]
    whole = sum(laid[name] for name in speech)
    for part, of, share in [
        *((whole, laid.total(), 0.4), (laid["interleaved"], laid.total(), 0.3), (laid["text"], laid.total(), 0.3)),
        *((laid[name], whole, 0.25) for name in speech[:3]),
        *((inner, whole, 0.25), (laid["speech.inner.a"], inner, 0.4), (laid["speech.inner.b"], inner, 0.6)),
    ]:
        assert part / of == pytest.approx(share, abs=0.01)
    assert set(laid) == {*speech, "interleaved", "text"}


def trees(depth: int) -> st.SearchStrategy[dict[str, SourceConfig]]:
    leaf = st.builds(
        SourceConfig, layout=st.sampled_from(["asr", "continuation", "text", "tts"]), weight=st.floats(0.2, 5)
    )
    node = leaf
    if depth:
        node = leaf | st.builds(SourceConfig, weight=st.floats(0.2, 5), sources=trees(depth - 1))
    return st.dictionaries(st.sampled_from("abcd"), node, min_size=1, max_size=4)


@given(sources=trees(2), seed=st.integers(0, 1000))
@settings(max_examples=40)
def test_each_part_of_each_level_is_within_one_document_of_its_share(corpus, sources, seed):
    mixture = nested_of(corpus, sources)
    rng = np.random.default_rng(seed)
    taken = {source.name: source.begin(0, 1) for source in mixture.sources}
    for _ in range(300):
        name = mixture.neediest(taken).name
        taken[name] = taken[name]._replace(tokens=taken[name].tokens + int(rng.integers(1, 101)))

    def check(node: Mixture) -> int:
        held = [check(part) if isinstance(part, Mixture) else taken[part.name].tokens for part in node.parts]
        for part, tokens in zip(node.parts, held, strict=True):
            # Below by so much as the others can have gone ahead: one document each.
            assert -101 * len(held) <= tokens - part.weight * sum(held) <= 101
        return sum(held)

    check(mixture)


def test_sources_of_one_name_at_two_places_are_two(corpus):
    one = SourceConfig("text", 1)
    mixture = nested_of(corpus, {"a": SourceConfig(weight=1, sources={"text": one}), "text": one})
    assert [source.name for source in mixture.sources] == ["a.text", "text"]
    taken = [source.begin(0, 1) for source in mixture.sources]
    keys = [source.read(at, 0, 1, 1000)[0][0].key for source, at in zip(mixture.sources, taken, strict=True)]
    assert keys[0].split("/")[2] != keys[1].split("/")[2]  # each in an order of its own


@pytest.mark.parametrize(
    "inner, message",
    [
        ({"x": SourceConfig("asr", -1.0)}, r"mixture\.sources\.a\.sources has a weight below 0"),
        ({"x": SourceConfig("asr", 0.0)}, r"mixture\.sources\.a\.sources has no source"),
        ({"x": SourceConfig("sing", 1.0)}, r"source a\.x: unknown layout 'sing'"),
    ],
)
def test_nested_mixtures_that_cannot_be_are_named(corpus, inner, message):
    with pytest.raises(BadInput, match=message):
        nested_of(corpus, {"a": SourceConfig(weight=1, sources=inner)})


# --- sources that end -------------------------------------------------------------------------------------------


def drain(mixture: Mixture, lanes: int, **options) -> list[list]:
    """All packs of every lane of a mixture that ends."""
    options = {"length": 256, "window": 3, "batch": 4} | options
    packs = []
    for number in range(lanes):
        lane = Lane(number, lanes, mixture, **options)
        packs.append(list(iter(lane.next_pack, None)))
        assert lane.next_pack() is None and lane.next_pack() is None
    return packs


@given(
    lanes=st.sampled_from([1, 3, 8, 50]),
    epochs=st.dictionaries(st.sampled_from(["asr", "continuation", "text"]), st.integers(1, 3), min_size=1),
    weight=st.floats(0.1, 10),
)
@settings(max_examples=15)
def test_bounded_sources_are_read_exactly_so_often(corpus, lanes, epochs, weight):
    sources = {
        name: SourceConfig(name, weight if name == "asr" else 1.0, epochs=count) for name, count in epochs.items()
    }
    mixture = nested_of(corpus, sources)
    assert mixture.bounded
    samples: dict[str, Counter[str]] = {name: Counter() for name in epochs}
    for packs in drain(mixture, lanes):
        for pack in packs:
            for key in {key.split("#")[0] for key in pack.keys}:
                samples[key.split("/")[0]][key] += 1
    for name, count in epochs.items():
        documents = Counter(tuple(key.split("/")[1:3]) for key in samples[name])
        spoken = 30 if name != "text" else 40
        assert {epoch for epoch, _ in documents} == {str(epoch) for epoch in range(count)}
        assert len(documents) == count * spoken


def test_what_an_ended_source_leaves_goes_to_those_beside_it(corpus):
    inner = {
        "once": SourceConfig("asr", 5, epochs=1),
        "a": SourceConfig("tts", 1),
        "b": SourceConfig("continuation", 3),
    }
    mixture = nested_of(corpus, {"speech": SourceConfig(weight=1, sources=inner), "text": SourceConfig("text", 1)})
    assert not mixture.bounded
    lane = Lane(0, 1, mixture, length=1024, window=4, batch=1)
    while tokens_of(lane).total() < 150_000:
        lane.next_pack()
    taken = tokens_of(lane)
    rest = taken["speech.a"] + taken["speech.b"]
    assert taken["speech.once"] < 0.2 * taken.total()
    assert (rest + taken["speech.once"]) / taken.total() == pytest.approx(0.5, abs=0.01)
    assert taken["speech.a"] / rest == pytest.approx(0.25, abs=0.01)


def test_a_lane_without_documents_of_a_source_that_ends_goes_on_with_the_others(tmp_path):
    few = Corpus.open(make_corpus(tmp_path / "c", train_documents=2, unspoken_every=100))
    mixture = nested_of(few, {"a": SourceConfig("asr", 1, epochs=1), "t": SourceConfig("text", 1)})
    for number in range(8):
        lane = Lane(number, 8, mixture, length=64, window=2, batch=8)
        assert all(lane.next_pack() is not None for _ in range(20))


# --- filters ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Corpus:
    """Each utterance has a score from 0 to 1, but for those of the last shard, which was not measured."""
    corpus = Corpus.open(make_corpus(tmp_path_factory.mktemp("measured") / "c", train_documents=40))
    rng = np.random.default_rng(3)
    for shard in corpus.shards("train")[:-1]:
        add_columns(shard, {"score": rng.random(len(read_index(shard)))})
    return corpus


def kept_by_hand(corpus: Corpus, bound: float) -> set[str]:
    """Keys of the utterances whose score is at least `bound`, read shard by shard."""
    kept = set()
    for shard in corpus.shards("train")[:-1]:
        with ShardReader(shard) as reader:
            scores = reader.index.columns["score"]
            kept |= {reader.read(sample).key for sample in range(len(reader)) if scores[sample] >= bound}
    return kept


@pytest.mark.parametrize("bound", [0.0, 0.3, 0.9])
def test_a_filter_keeps_what_it_says_and_reads_nothing_else(measured, monkeypatch, bound):
    read: set[str] = set()
    whole = ShardReader.read

    def noted(self, sample):
        utterance = whole(self, sample)
        read.add(utterance.key)
        return utterance

    wanted = kept_by_hand(measured, bound)
    monkeypatch.setattr(ShardReader, "read", noted)
    source = SourceConfig("text", 1, epochs=1, filter=f"score >= {bound}")
    packs = chain(*drain(nested_of(measured, {"a": source}), 3))
    assert read == wanted
    documents = {key.split("/")[2] for pack in packs for key in pack.keys}
    assert documents == {key.rpartition("-")[0] for key in wanted}


def test_a_filter_is_part_of_the_stream(measured):
    described = [
        nested_of(measured, {"a": SourceConfig("text", 1, filter=f)}).describe() for f in (None, "score > 0.1")
    ]
    assert described[0] != described[1]


@pytest.mark.parametrize(
    "expression, message",
    [
        ("score >", "source a: filter 'score >'"),
        ("__import__('os')", "source a: filter"),
    ],
)
def test_filters_that_cannot_be_are_refused_before_anything_is_read(measured, expression, message):
    with pytest.raises(BadInput, match=re.escape(message)) as caught:
        nested_of(measured, {"a": SourceConfig("text", 1, filter=expression)})
    assert "\n" not in str(caught.value)


def test_a_column_that_no_shard_has_is_refused_with_those_there_are(measured):
    mixture = nested_of(measured, {"a": SourceConfig("text", 1, filter="scor > 0.1")})
    with pytest.raises(BadInput, match=r"no column scor; there are .*score"):
        Lane(0, 1, mixture, length=64, window=2, batch=1).next_pack()


def test_a_filter_that_keeps_nothing_ends_in_one_line(measured, monkeypatch):
    monkeypatch.setattr("data_pipeline.lanes.MOST_EMPTY", 50)
    mixture = nested_of(measured, {"a": SourceConfig("text", 1, filter="score > 2")})
    with pytest.raises(BadInput, match=r"source a: .* no sample of 50 documents in a row.*filter 'score > 2'"):
        Lane(0, 1, mixture, length=64, window=2, batch=1).next_pack()
