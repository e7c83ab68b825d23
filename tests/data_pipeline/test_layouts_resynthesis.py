"""Speech beside its codes: crops of whole groups with the sound of just those groups."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from data_pipeline.audio import SAMPLE_RATE, encode_flac, resample
from data_pipeline.batch import collate
from data_pipeline.layouts import find_layout
from data_pipeline.layouts.groups import lay_groups
from data_pipeline.packing import fill_packs
from data_pipeline.sample_bytes import DamagedSample
from data_pipeline.utterance import Utterance
from runtime.exits import BadInput
from tests.data_pipeline.synthetic import LINGUISTIC, SEMANTIC, make_vocabulary

VOCABULARY = make_vocabulary()
RATE = 22_050


def utterance(groups: int, seed: int = 0) -> Utterance:
    """So many groups, and a little more sound than they stand for."""
    rng = np.random.default_rng(seed)
    wave = 0.1 * rng.standard_normal(round((groups * 0.12 + 0.05) * SAMPLE_RATE)).astype(np.float32)
    codes = {
        LINGUISTIC.name: rng.integers(0, 32, (1, 2 * groups + 1)),
        SEMANTIC.name: rng.integers(0, 64, (1, 3 * groups + 2)),
    }
    return Utterance(key=f"u{seed}", text="", document="d", codes=codes, audio=encode_flac(wave))


def laid(utterances: list[Utterance], seed: int = 0, **options) -> list:
    layout = find_layout("resynthesis", options)
    return layout(utterances, VOCABULARY, np.random.default_rng(seed))


@pytest.mark.parametrize("groups", [5, 10, 23])
def test_crops_are_neighbouring_groups_with_their_own_sound(groups: int) -> None:
    said = utterance(groups)
    from data_pipeline.audio import decode_flac

    sound = resample(decode_flac(said.audio), SAMPLE_RATE, RATE)
    ids = lay_groups(said, VOCABULARY)
    samples = laid([said], seconds=1.2)
    at = 0
    for sample in samples:
        assert len(sample) % 5 == 0 and len(sample) <= 50 and not sample.loss_weight.any()
        while not np.array_equal(ids[at : at + len(sample) // 5].reshape(-1), sample.tokens):
            at += 1
            assert at < groups
        begin, end = (round(group * 0.12 * RATE) for group in (at, at + len(sample) // 5))
        np.testing.assert_array_equal(sample.wave.samples, sound[begin:end])
        at += len(sample) // 5
    assert sum(map(len, samples)) >= 5 * (groups - 2 * 3)  # what is left out is shorter than half a second
    assert len({sample.wave.seed for sample in samples}) == len(samples)


def test_one_seed_gives_one_cut_and_another_another() -> None:
    lengths = [[len(sample) for sample in laid([utterance(23)], seed=seed, seconds=1.2)] for seed in (0, 0, 1, 2, 3)]
    assert lengths[0] == lengths[1] and len({tuple(one) for one in lengths}) > 1


def test_utterances_without_sound_or_codes_give_nothing() -> None:
    assert laid([replace(utterance(9), audio=None), Utterance(key="t", text="written", document="d")]) == []


def test_sound_that_cannot_be_decoded_is_damage() -> None:
    with pytest.raises(DamagedSample, match="audio"):
        laid([replace(utterance(9), audio=b"no flac")])


def test_impossible_options_are_refused() -> None:
    with pytest.raises(BadInput, match="at least one group"):
        laid([], seconds=0.05)
    with pytest.raises(BadInput, match="rate"):
        laid([], rate=8000)


def test_a_batch_knows_the_places_and_sounds_of_its_samples() -> None:
    samples = [sample for seed in range(3) for sample in laid([utterance(9 + seed, seed)], seed, seconds=1.2)]
    packs = fill_packs(samples, 120, 0)
    batch = collate(packs)
    waves = batch.waves
    packed = [wave for pack in packs for wave in pack.waves]
    assert len(packed) == len(samples) == len(waves.lengths)
    by_seed = {sample.wave.seed: sample for sample in samples}
    for row, seed in enumerate(waves.seeds.tolist()):
        own, places = by_seed[seed], waves.places[row]
        np.testing.assert_array_equal(batch.tokens[0, places[places >= 0]], own.tokens)
        np.testing.assert_array_equal(waves.samples[row, : waves.lengths[row]], own.wave.samples)
        assert not waves.samples[row, waves.lengths[row] :].any()
