from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.order import Cursor, Order
from data_pipeline.permutation import permuted, seed_of, shuffled

# --- permutations -----------------------------------------------------------------------------------------------


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**64 - 1))
@settings(max_examples=40)
def test_permutations_are_such(size, seed):
    assert sorted(permuted(i, size, seed) for i in range(size)) == list(range(size))
    assert sorted(shuffled(size, seed)) == list(range(size))


@pytest.mark.parametrize("permutation", ["permuted", "shuffled"])
def test_permutation_mixes(permutation):
    size = 5000

    def order_of(epoch: int) -> np.ndarray:
        seed = seed_of(1, "a", epoch)
        if permutation == "shuffled":
            return shuffled(size, seed)
        return np.array([permuted(i, size, seed) for i in range(size)])

    order = order_of(0)
    assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 0.05
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.05
    assert (order == order_of(1)).mean() < 0.005


def test_permutation_of_many_is_as_cheap_as_of_few():
    assert len({permuted(i, 10**12, 3) for i in range(1000)}) == 1000


def test_permutation_never_changes():
    """A resumed run may meet a newer version of this file; the order must be the old one."""
    assert [permuted(i, 10, seed_of(7, "asr", 0)) for i in range(10)] == [1, 4, 5, 8, 0, 6, 3, 7, 2, 9]
    assert shuffled(10, seed_of(7, "asr", 0)).tolist() == [9, 2, 5, 0, 3, 6, 8, 1, 4, 7]


def test_shuffled_sorts_the_published_splitmix64_sequence():
    """The first five numbers of the reference implementation for seed 1234567."""
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert shuffled(5, 1234567).tolist() == sorted(range(5), key=published.__getitem__)


# --- order ------------------------------------------------------------------------------------------------------


def read_epochs(order: Order, lane: int, lanes: int, epochs: int) -> list[tuple[int, int]]:
    """(epoch, document) of everything the lane reads in so many epochs."""
    read = []
    cursor = order.normal(Cursor(0, 0), lane, lanes)
    while cursor.epoch < epochs:
        read.append((cursor.epoch, order.document(cursor, lane, lanes)))
        cursor = order.normal(cursor._replace(place=cursor.place + 1), lane, lanes)
    return read


@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(any),
    lanes=st.integers(1, 40),
    block=st.integers(1, 50),
    seed=st.integers(0, 2**64 - 1),
)
@settings(max_examples=60)
def test_every_document_comes_once_an_epoch_over_all_lanes(counts, lanes, block, seed):
    order = Order(counts, seed=seed, block=block)
    read = Counter(one for lane in range(lanes) for one in read_epochs(order, lane, lanes, 3))
    assert read == Counter((epoch, document) for epoch in range(3) for document in range(sum(counts)))


def test_order_never_changes():
    order = Order([3, 0, 4, 2], seed=seed_of(7, "asr"), block=3)
    assert read_epochs(order, 1, 2, 2) == [(0, 2), (0, 0), (0, 1), (0, 8), (0, 7), (1, 1), (1, 0), (1, 2), (1, 7)]


@given(lanes=st.integers(1, 64), documents=st.integers(1, 8))
@settings(max_examples=20)
def test_every_lane_meets_documents_however_few_there_are(lanes, documents):
    order = Order([documents], seed=3, block=16)
    for lane in range(lanes):
        assert order.normal(Cursor(0, 0), lane, lanes).epoch < lanes


def test_a_lane_has_few_shards_in_hand_and_the_others_have_others():
    shards, each, lanes, block = 400, 100, 16, 512
    order = Order([each] * shards, seed=5, block=block)
    touched = []
    for lane in range(lanes):
        numbers = np.array([document // each for _, document in read_epochs(order, lane, lanes, 1)])
        touched.append(set(numbers.tolist()))
        for start in range(0, len(numbers), block):
            assert len(set(numbers[start : start + block].tolist())) <= block // each + 2
    assert max(map(len, touched)) <= shards // lanes + 1
    assert sum(map(len, touched)) <= shards + lanes


def test_documents_near_in_time_are_not_neighbours_on_disk():
    order = Order([1000] * 20, seed=5, block=512)
    numbers = np.array([document for _, document in read_epochs(order, 0, 4, 1)])
    inside = numbers[:512]
    assert abs(np.corrcoef(inside[1:], inside[:-1])[0, 1]) < 0.2
    assert (np.abs(np.diff(inside)) == 1).mean() < 0.02


def test_a_slice_below_a_block_is_shuffled_as_a_whole():
    order = Order([25] * 4, seed=11, block=4096)
    first, second = (np.array([d for e, d in read_epochs(order, 0, 1, 2) if e == epoch]) for epoch in range(2))
    assert abs(np.corrcoef(first, np.arange(100))[0, 1]) < 0.3
    assert (first == second).mean() < 0.1


def test_a_thousand_documents_of_ten_million_take_no_time():
    order = Order([1000] * 10_000, seed=5, block=4096)
    started = time.perf_counter()
    cursor = Cursor(3, 123_456)
    for _ in range(1000):
        order.document(cursor, 7, 64)
        cursor = order.normal(cursor._replace(place=cursor.place + 1), 7, 64)
    assert time.perf_counter() - started < 0.5
