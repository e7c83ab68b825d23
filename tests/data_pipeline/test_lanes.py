from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.corpus import Corpus
from data_pipeline.damage import DamageTally
from data_pipeline.documents import Documents
from data_pipeline.lanes import Lane
from data_pipeline.mixture import open_mixture
from runtime.exits import BadInput
from tests.data_pipeline.synthetic import make_config, make_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return Corpus.open(make_corpus(tmp_path_factory.mktemp("corpus") / "c", train_documents=40))


def mixture_of(corpus, weights=None, split="train"):
    return open_mixture(make_config(weights), corpus, split, DamageTally(0.0))


def equal(one, other) -> bool:
    return one.keys == other.keys and all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("tokens", "labels", "loss_weight", "label_modality", "positions")
    )


@given(stop=st.integers(0, 40), length=st.integers(16, 200), window=st.integers(1, 6), seed=st.integers(0, 100))
@settings(max_examples=25)
def test_a_lane_goes_on_from_its_state_exactly(corpus, stop, length, window, seed):
    config = make_config(seed=seed)
    mixture = open_mixture(config, corpus, "train", DamageTally(0.0))
    lane = Lane(2, 4, mixture, length=length, window=window, batch=4)
    for _ in range(stop):
        lane.next_pack()
    state = json.loads(json.dumps(lane.state()))
    resumed = Lane(2, 4, mixture, length=length, window=window, batch=4)
    resumed.restore(state)
    assert resumed.state() == state
    assert all(equal(lane.next_pack(), resumed.next_pack()) for _ in range(10))
    assert resumed.state() == lane.state()


def test_state_is_a_few_integers(corpus):
    lane = Lane(0, 4, mixture_of(corpus), length=64, window=4, batch=4)
    sizes = set()
    for _ in range(100):
        lane.next_pack()
        sizes.add(len(json.dumps(lane.state())) // 50)
    assert max(sizes) * 50 < 300


def test_lanes_do_not_share_documents_in_an_epoch(corpus):
    mixture = mixture_of(corpus, {"text": 1.0})
    seen = [{key for _ in range(3) for key in lane.next_pack().keys if key.startswith("text/0/")} for lane in
            (Lane(n, 4, mixture, length=64, window=2, batch=4) for n in range(4))]  # fmt: skip
    assert all(seen) and len(set.union(*seen)) == sum(map(len, seen))


def test_fewer_documents_than_lanes(tmp_path):
    tiny = Corpus.open(make_corpus(tmp_path / "c", train_documents=2))
    mixture = mixture_of(tiny)
    for number in range(16):
        lane = Lane(number, 16, mixture, length=64, window=3, batch=4)
        epochs = {key.split("/")[1] for _ in range(100) for key in lane.next_pack().keys}
        assert len(epochs) > 1


def test_padding_is_little(corpus):
    lane = Lane(0, 4, mixture_of(corpus), length=256, window=16, batch=4)
    packs = [lane.next_pack() for _ in range(200)]
    assert sum(pack.padding for pack in packs) / (200 * 256) < 0.04


def test_documents_that_give_nothing_end_in_one_line(corpus, monkeypatch):
    monkeypatch.setattr("data_pipeline.lanes.MOST_EMPTY", 50)
    mixture = mixture_of(corpus, {"interleaved": 1.0})
    monkeypatch.setattr(Documents, "read", lambda self, number: [])
    with pytest.raises(BadInput, match="interleaved made no sample of 50 documents"):
        Lane(0, 1, mixture, length=64, window=2, batch=4).next_pack()


# --- attention cost ---------------------------------------------------------------------------------------------


def costs_of(packs) -> np.ndarray:
    return np.array([sum(length**2 for length in pack.lengths) for pack in packs], float)


def test_ranks_of_a_step_have_like_attention_cost_and_steps_like_contents(corpus, monkeypatch):
    """Against packs of a window in random order: less imbalance on every world, half the variation between steps."""
    lanes, batch, steps = 16, 32, 20

    def stream() -> tuple[np.ndarray, np.ndarray]:
        mixture = mixture_of(corpus, {"asr": 1.0, "continuation": 1.0, "text": 2.0})
        row = [Lane(number, lanes, mixture, length=512, window=16, batch=batch) for number in range(lanes)]
        packs = [row[number % lanes].next_pack() for number in range(steps * batch)]
        spoken = np.array([pack.audio_seconds for pack in packs])
        return costs_of(packs).reshape(steps, batch), spoken.reshape(steps, batch).mean(1)

    ours, our_speech = stream()
    rng = np.random.default_rng(0)
    monkeypatch.setattr(Lane, "_balanced", lambda self, packs: [packs[i] for i in rng.permutation(len(packs))])
    theirs, their_speech = stream()
    for world in (2, 4, 8):
        mine, others = (one.reshape(steps, batch // world, world).sum(1) for one in (ours, theirs))
        mine, others = ((one.max(1) / one.mean(1) - 1).mean() for one in (mine, others))
        assert mine < 0.7 * others
    assert our_speech.std() < 0.5 * their_speech.std()
    assert ours[:4].mean() == pytest.approx(ours.mean(), rel=0.1)  # windows begin with neither long nor short


def test_balancing_hands_out_every_pack_once(corpus):
    lane = Lane(1, 4, mixture_of(corpus), length=128, window=9, batch=4)
    packs, *_ = lane._next_window()
    assert sorted(pack.keys for pack in packs) == sorted(pack.keys for pack in lane._balanced(packs))
