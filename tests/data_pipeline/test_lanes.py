from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import SourceConfig
from data_pipeline.corpus import Corpus
from data_pipeline.damage import DamageTally
from data_pipeline.documents import Documents
from data_pipeline.lanes import Lane
from data_pipeline.mixture import open_mixture
from data_pipeline.permutation import permuted, seed_of
from runtime.exits import BadInput
from tests.data_pipeline.synthetic import make_config, make_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return Corpus.open(make_corpus(tmp_path_factory.mktemp("corpus") / "c", train_documents=40))


def mixture_of(corpus, weights=None, split="train"):
    return open_mixture(make_config(weights), corpus, split, DamageTally(0.0))


def tokens_of(lane: Lane) -> dict[str, int]:
    return {name: tokens for name, (_, _, tokens) in lane.state()["sources"].items()}


def equal(one, other) -> bool:
    return one.keys == other.keys and all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("tokens", "labels", "loss_weight", "label_modality", "positions")
    )


# --- permutation ------------------------------------------------------------------------------------------------


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**64 - 1))
@settings(max_examples=40, deadline=None)
def test_permutation_is_one(size, seed):
    assert sorted(permuted(i, size, seed) for i in range(size)) == list(range(size))


def test_permutation_mixes():
    size = 5000
    order = np.array([permuted(i, size, seed_of(1, "a", 0)) for i in range(size)])
    assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 0.05
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.05
    other = np.array([permuted(i, size, seed_of(1, "a", 1)) for i in range(size)])
    assert (order == other).mean() < 0.005


def test_permutation_of_many_is_as_cheap_as_of_few():
    assert len({permuted(i, 10**12, 3) for i in range(1000)}) == 1000


def test_permutation_never_changes():
    """A resumed run may meet a newer version of this file; the order must be the old one."""
    assert [permuted(i, 10, seed_of(7, "asr", 0)) for i in range(10)] == [1, 4, 5, 8, 0, 6, 3, 7, 2, 9]


# --- mixture ----------------------------------------------------------------------------------------------------


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
@settings(max_examples=6, deadline=None)
def test_shares_are_of_tokens_within_one_percent(corpus, weights):
    lane = Lane(0, 4, mixture_of(corpus, weights), length=256, window=8)
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


# --- lanes ------------------------------------------------------------------------------------------------------


@given(stop=st.integers(0, 40), length=st.integers(16, 200), window=st.integers(1, 6), seed=st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_a_lane_goes_on_from_its_state_exactly(corpus, stop, length, window, seed):
    config = make_config(seed=seed)
    mixture = open_mixture(config, corpus, "train", DamageTally(0.0))
    lane = Lane(2, 4, mixture, length=length, window=window)
    for _ in range(stop):
        lane.next_pack()
    state = json.loads(json.dumps(lane.state()))
    resumed = Lane(2, 4, mixture, length=length, window=window)
    resumed.restore(state)
    assert resumed.state() == state
    assert all(equal(lane.next_pack(), resumed.next_pack()) for _ in range(10))
    assert resumed.state() == lane.state()


def test_state_is_a_few_integers(corpus):
    lane = Lane(0, 4, mixture_of(corpus), length=64, window=4)
    sizes = set()
    for _ in range(100):
        lane.next_pack()
        sizes.add(len(json.dumps(lane.state())) // 50)
    assert max(sizes) * 50 < 300


def test_lanes_do_not_share_documents_in_an_epoch(corpus):
    mixture = mixture_of(corpus, {"text": 1.0})
    seen = [{key for _ in range(3) for key in lane.next_pack().keys if key.startswith("text/0/")} for lane in
            (Lane(n, 4, mixture, length=64, window=2) for n in range(4))]  # fmt: skip
    assert all(seen) and len(set.union(*seen)) == sum(map(len, seen))


def test_fewer_documents_than_lanes(tmp_path):
    tiny = Corpus.open(make_corpus(tmp_path / "c", train_documents=2))
    mixture = mixture_of(tiny)
    for number in range(16):
        lane = Lane(number, 16, mixture, length=64, window=3)
        epochs = {key.split("/")[1] for _ in range(100) for key in lane.next_pack().keys}
        assert len(epochs) > 1


def test_padding_is_little(corpus):
    lane = Lane(0, 4, mixture_of(corpus), length=256, window=16)
    packs = [lane.next_pack() for _ in range(200)]
    assert sum(pack.padding for pack in packs) / (200 * 256) < 0.04


def test_documents_that_give_nothing_end_in_one_line(corpus, monkeypatch):
    monkeypatch.setattr("data_pipeline.lanes.MOST_EMPTY", 50)
    mixture = mixture_of(corpus, {"interleaved": 1.0})
    monkeypatch.setattr(Documents, "read", lambda self, number: [])
    with pytest.raises(BadInput, match="interleaved made no sample of 50 documents"):
        Lane(0, 1, mixture, length=64, window=2).next_pack()
