from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.batch import FeatureSlots, Sample, Target, collate
from data_pipeline.packing import fill_packs, filler, split_long
from runtime.exits import BadInput

LENGTH = 32
PADDING = 999


def make_sample(key: str, widths: list[int], rng: np.random.Generator) -> Sample:
    """Groups of the given widths; wide ones are audio."""
    group = np.repeat(np.arange(len(widths), dtype=np.int32), widths)
    audio = np.repeat([width > 1 for width in widths], widths)
    return Sample(
        tokens=rng.integers(0, 900, len(group)),
        loss_weight=rng.random(len(group), np.float32) + 0.5,
        modality=audio.astype(np.uint8),
        group=group,
        key=key,
        audio_seconds=0.12 * sum(width > 1 for width in widths),
    )


widths = st.lists(st.sampled_from([1, 1, 5]), min_size=1, max_size=40)
windows = st.lists(widths, min_size=1, max_size=25)


@given(windows=windows, seed=st.integers(0, 1000))
@settings(max_examples=80)
def test_every_token_is_in_one_pack_and_no_group_is_cut(windows, seed):
    rng = np.random.default_rng(seed)
    whole = [make_sample(f"s{i}", widths, rng) for i, widths in enumerate(windows)]
    pieces = [piece for sample in whole for piece in split_long(sample, LENGTH)]
    by_key = {piece.key: piece for piece in pieces}
    assert len(by_key) == len(pieces)

    # cutting
    for sample in whole:
        own = [piece for piece in pieces if piece.key.split("#")[0] == sample.key]
        np.testing.assert_array_equal(np.concatenate([piece.tokens for piece in own]), sample.tokens)
        assert sum(piece.audio_seconds for piece in own) == pytest.approx(sample.audio_seconds)
        assert all(before.group[-1] != after.group[0] for before, after in pairwise(own))
        assert (len(own) == 1) == (len(sample) <= LENGTH)

    # filling
    packs = fill_packs(pieces, LENGTH, PADDING)
    assert sorted(key for pack in packs for key in pack.keys) == sorted(by_key)
    for pack in packs:
        assert sum(pack.lengths) == LENGTH == len(pack.tokens) == len(pack.labels) == len(pack.positions)
        assert len(pack.lengths) == len(pack.keys) + (pack.padding > 0)
        start = 0
        for key, length in zip(pack.keys, pack.lengths, strict=False):
            piece, at = by_key[key], slice(start, start + length)
            np.testing.assert_array_equal(pack.tokens[at], piece.tokens)
            np.testing.assert_array_equal(pack.labels[at][:-1], piece.tokens[1:])
            np.testing.assert_array_equal(pack.loss_weight[at][:-1], piece.loss_weight[1:])
            np.testing.assert_array_equal(pack.label_modality[at][:-1], piece.modality[1:])
            np.testing.assert_array_equal(pack.positions[at], np.arange(length))
            assert pack.loss_weight[at][-1] == 0
            start += length
        assert start + pack.padding == LENGTH
        assert np.all(pack.tokens[start:] == PADDING) and np.all(pack.loss_weight[start:] == 0)
        assert pack.audio_seconds == pytest.approx(sum(by_key[key].audio_seconds for key in pack.keys))

    # no two packs could have been one, and the order of the stream is kept inside each
    room = sorted(LENGTH - pack.padding for pack in packs)
    assert len(room) < 2 or room[0] + room[1] > LENGTH
    order = {piece.key: i for i, piece in enumerate(pieces)}
    for pack in packs:
        assert [order[key] for key in pack.keys] == sorted(order[key] for key in pack.keys)


def test_best_fit_decreasing_wastes_little():
    rng = np.random.default_rng(0)
    samples = [make_sample(f"s{i}", [1] * int(n), rng) for i, n in enumerate(rng.integers(2, 33, 400))]
    packs = fill_packs(samples, LENGTH, PADDING)
    fewest = -(-sum(map(len, samples)) // LENGTH)
    assert len(packs) <= 1.05 * fewest


def test_packs_follow_the_stream():
    rng = np.random.default_rng(0)
    samples = [make_sample(f"{i:03d}", [1] * int(n), rng) for i, n in enumerate(rng.integers(2, 33, 100))]
    firsts = [pack.keys[0] for pack in fill_packs(samples, LENGTH, PADDING)]
    assert firsts == sorted(firsts)


def test_a_group_longer_than_a_pack_is_refused():
    with pytest.raises(BadInput, match="sequence_length 4"):
        split_long(make_sample("s", [5, 5], np.random.default_rng(0)), 4)


def test_batch_has_the_packs_in_a_row():
    rng = np.random.default_rng(0)
    packs = fill_packs([make_sample(f"s{i}", [1] * 20, rng) for i in range(3)], LENGTH, PADDING)
    batch = collate(packs)
    assert batch.tokens.shape == (1, 3 * LENGTH)
    assert batch.cu_seqlens.tolist() == [0, 20, 32, 52, 64, 84, 96]
    assert batch.longest == 20


# --- columns, slots and targets ---------------------------------------------------------------------------------


def rich_sample(key: str, length: int, rng: np.random.Generator, *, columns: int = 3, target: bool = True) -> Sample:
    """`columns` tokens a place; a run of feature slots, two vectors a place, in the middle; a target a place."""
    shape = (length, columns)
    tokens = rng.integers(0, 900, shape)
    first, last = length // 4, length // 2
    tokens[first:last] = -1
    vectors = rng.random((max(0, 2 * (last - first) - 1), 4)).astype(np.float16)
    return Sample(
        tokens=tokens,
        loss_weight=(tokens >= 0).astype(np.float32),
        modality=np.ones(shape, np.uint8),
        group=np.arange(length, dtype=np.int32),
        key=key,
        slots=(FeatureSlots("whisper", vectors, 2, first),) if len(vectors) else (),
        targets={"edge": Target(rng.integers(0, 9, length), np.ones(length, np.float32))} if target else {},
    )


@given(lengths=st.lists(st.integers(1, 70), min_size=1, max_size=12), seed=st.integers(0, 1000))
@settings(max_examples=50)
def test_vectors_and_targets_keep_their_places(lengths, seed):
    """Every vector is found again at the place, of the pack's row, where its sample put it."""
    rng = np.random.default_rng(seed)
    whole = [rich_sample(f"s{i}", length, rng, target=i % 3 != 0) for i, length in enumerate(lengths)]
    pieces = [piece for sample in whole for piece in split_long(sample, LENGTH)]
    packs = fill_packs(pieces, LENGTH, PADDING)
    by_key = {piece.key: piece for piece in pieces}
    batch = collate(packs)
    assert batch.tokens.shape == batch.labels.shape == batch.loss_weight.shape == (1, len(packs) * LENGTH, 3)
    assert batch.positions.shape == (1, len(packs) * LENGTH)

    expected, values, weights = [], [], []
    start = 0
    for pack in packs:
        at = start
        for key, length in zip(pack.keys, pack.lengths, strict=False):
            piece = by_key[key]
            np.testing.assert_array_equal(batch.tokens[0, at : at + length], piece.tokens)
            np.testing.assert_array_equal(batch.labels[0, at : at + length - 1], piece.tokens[1:])
            for run in piece.slots:
                expected += [(at + run.start + i // 2, *vector) for i, vector in enumerate(run.vectors.tolist())]
            target = piece.targets.get("edge", Target(np.zeros(length, int), np.zeros(length, np.float32)))
            values += target.values.tolist()
            weights += target.weight.tolist()
            at += length
        values += [0] * pack.padding
        weights += [0.0] * pack.padding
        start += LENGTH
    if expected:
        splice = batch.splices["whisper"]
        places = torch.repeat_interleave(splice.places, splice.frames).tolist()
        assert [(place, *vector) for place, vector in zip(places, splice.vectors.tolist(), strict=True)] == expected
        assert len(splice.runs) == 1 + sum(len(pack.slots) for pack in packs)
    if any(weights):
        assert batch.targets["edge"].values[0].tolist() == values
        assert batch.targets["edge"].weight[0].tolist() == weights


def test_a_batch_takes_all_of_it_to_a_device():
    rng = np.random.default_rng(0)
    batch = collate(fill_packs([rich_sample("s", 20, rng)], LENGTH, PADDING)).to("meta")
    parts = [
        batch.tokens,
        batch.splices["whisper"].vectors,
        batch.splices["whisper"].places,
        batch.targets["edge"].weight,
    ]
    assert {part.device.type for part in parts} == {"meta"}


def test_samples_of_other_columns_do_not_fit_one_pack():
    rng = np.random.default_rng(0)
    samples = [rich_sample("a/0/d/0", 5, rng), make_sample("b/0/d/0", [1] * 5, rng)]
    with pytest.raises(BadInput, match=r"3 \(a/0/d/0\) and 1 \(b/0/d/0\) columns"):
        fill_packs(samples, LENGTH, PADDING)


def test_one_column_is_as_it_was():
    batch = collate(fill_packs([make_sample("s", [1] * 20, np.random.default_rng(0))], LENGTH, PADDING))
    assert batch.tokens.shape == (1, LENGTH) and batch.splices == {} and batch.targets == {}


def test_a_filler_goes_with_packs_of_its_columns():
    packs = fill_packs([rich_sample("s", 20, np.random.default_rng(0))], LENGTH, PADDING)
    batch = collate([filler(LENGTH, PADDING, 3), *packs])
    assert batch.tokens.shape == (1, 2 * LENGTH, 3) and batch.splices["whisper"].places.min() == LENGTH + 5
    assert not batch.loss_weight[0, :LENGTH].any() and batch.tokens[0, 0].tolist() == [-1, -1, PADDING]
    assert filler(LENGTH, PADDING).tokens.tolist() == [PADDING] * LENGTH
