from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter

import numpy as np
import pytest

from configs.schema import Config
from data_pipeline.corpus import Corpus
from data_pipeline.damage import DamageTally
from data_pipeline.lanes import Lane
from data_pipeline.loader import Loader, make_loader, merge_states, validation_packs
from data_pipeline.mixture import open_mixture
from data_pipeline.prefetch import Prefetcher
from data_pipeline.shards import DamagedSample, index_path, read_index
from runtime.exits import BadInput
from tests.data_pipeline import faults
from tests.data_pipeline.synthetic import make_config, make_corpus

LAYOUTS = ["asr", "continuation", "interleaved", "text", "tts"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus") / "c", train_documents=20)


def loaders(config: Config, folder, world: int) -> list[Loader]:
    return [make_loader(config, Corpus.open(folder), split="train", rank=rank, world=world) for rank in range(world)]


def run(ranks: list[Loader], steps: int) -> list:
    """Packs of `steps` steps in global order."""
    packs = []
    for _ in range(steps):
        by_rank = [rank.next_step() for rank in ranks]
        packs += [pack for turn in zip(*by_rank, strict=True) for pack in turn]
    return packs


def assert_same(packs, others) -> None:
    assert [pack.keys for pack in packs] == [pack.keys for pack in others]
    for one, other in zip(packs, others, strict=True):
        assert (one.lengths, one.padding, one.audio_seconds) == (other.lengths, other.padding, other.audio_seconds)
        for name in ("tokens", "labels", "loss_weight", "label_modality", "positions"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("lanes, batch", [(4, 4), (8, 4), (4, 8), (6, 4)])
def test_global_pack_g_comes_from_lane_g_mod_lanes(folder, lanes, batch):
    config = make_config(global_batch=batch)
    config.loader.lanes = lanes
    mixture = open_mixture(config, Corpus.open(folder), "train", DamageTally(0.0))
    alone = [
        Lane(n, lanes, mixture, length=128, window=config.loader.packing_window, batch=batch) for n in range(lanes)
    ]
    packs = run(loaders(config, folder, 2), 5)
    assert_same(packs, [alone[g % lanes].next_pack() for g in range(5 * batch)])


def test_different_seeds_and_splits_give_different_streams(folder):
    streams = [run(loaders(make_config(seed=seed), folder, 1), 2) for seed in (1, 2)]
    assert [pack.keys for pack in streams[0]] != [pack.keys for pack in streams[1]]


@pytest.mark.parametrize("lanes, batch, world, name", [(4, 6, 3, "loader.lanes 4"), (6, 4, 3, "train.global_batch 4")])
def test_a_world_that_divides_not_both_is_refused(folder, lanes, batch, world, name):
    config = make_config(global_batch=batch)
    config.loader.lanes = lanes
    with pytest.raises(BadInput, match=name):
        make_loader(config, Corpus.open(folder), split="train", rank=0, world=world)


# --- state ------------------------------------------------------------------------------------------------------


def test_state_is_of_what_was_handed_out_not_of_what_was_read_ahead(folder):
    config = make_config()
    still = make_loader(config, Corpus.open(folder), split="train", rank=0, world=1)
    config.loader.prefetch = 8
    ahead = make_loader(config, Corpus.open(folder), split="train", rank=0, world=1)
    for _ in range(3):
        still.next_step()
        ahead.next_step()
        time.sleep(0.05)
        assert ahead.state_dict() == still.state_dict()
    ahead.close()
    assert_same(run([ahead], 2), run([still], 2))
    ahead.close()


def test_ranks_may_come_twice_but_not_at_different_steps(folder):
    ranks = loaders(make_config(), folder, 2)
    run(ranks, 1)
    states = [rank.state_dict() for rank in ranks]
    assert merge_states([*states, states[0]]) == merge_states(states[::-1])
    ranks[0].next_step()
    with pytest.raises(ValueError, match="different steps"):
        merge_states([rank.state_dict() for rank in ranks])


def test_a_missing_lane_is_refused(folder):
    ranks = loaders(make_config(), folder, 2)
    with pytest.raises(BadInput, match="no lane 1"):
        make_loader(make_config(), Corpus.open(folder), split="train", rank=0, world=1).load_state_dict(
            ranks[0].state_dict()
        )


@pytest.mark.parametrize("name, value", [("seed", 8), ("sequence_length", 64), ("global_batch", 8)])
def test_the_state_of_another_stream_is_refused(folder, name, value):
    state = make_loader(make_config(), Corpus.open(folder), split="train", rank=0, world=1).state_dict()
    other = make_loader(make_config(**{name: value}), Corpus.open(folder), split="train", rank=0, world=1)
    with pytest.raises(BadInput, match=f"{name} = .* now it is {value}"):
        other.load_state_dict(state)


def test_another_mixture_or_corpus_is_another_stream(folder, tmp_path):
    state = make_loader(
        make_config({"asr": 1.0, "tts": 1.0}), Corpus.open(folder), split="train", rank=0, world=1
    ).state_dict()
    for weights, where in (({"asr": 1.0, "tts": 2.0}, folder), ({"asr": 1.0, "tts": 1.0}, make_corpus(tmp_path / "d"))):
        with pytest.raises(BadInput, match="mixture"):
            make_loader(make_config(weights), Corpus.open(where), split="train", rank=0, world=1).load_state_dict(state)


# --- damage -----------------------------------------------------------------------------------------------------


def texts(packs) -> set[str]:
    """Keys without the number of the piece."""
    return {key.split("#")[0] for pack in packs for key in pack.keys}


def test_a_truncated_shard_costs_its_own_samples_only(tmp_path):
    config = make_config({"asr": 1.0})
    config.loader.damaged_share = 0.5
    folder = make_corpus(tmp_path / "c", train_documents=32)
    whole = run([make_loader(config, Corpus.open(folder), split="train", rank=0, world=1)], 30)
    shard = Corpus.open(folder).shards("train")[1]
    os.truncate(shard, int(read_index(shard).offset[4]) + 10)
    lost = {f"train-{number:04d}" for number in range(8, 16)}

    loader = make_loader(config, Corpus.open(folder), split="train", rank=0, world=1)
    damaged = run([loader], 30)
    assert loader.damaged.keys() == {"truncated"}
    assert loader.damaged["truncated"] > 0
    assert all(shard.name in name for name in loader.damaged_names)
    # One source, so documents come in the same order: the first epoch is the same but for what was lost.
    intact = [key for key in ordered(whole) if key.split("/")[2] not in lost and key.startswith("asr/0/")]
    assert [key for key in ordered(damaged) if key.split("/")[2] not in lost and key.startswith("asr/0/")] == intact
    assert_same(run(loaders(config, folder, 2), 30), damaged)


def ordered(packs) -> list[str]:
    return sorted(texts(packs))


def test_every_lane_reads_the_same_documents_with_and_without_damage(tmp_path):
    config = make_config({"asr": 1.0, "text": 1.0, "continuation": 1.0})
    config.loader.damaged_share = 1.0
    folder = make_corpus(tmp_path / "c", train_documents=32)

    def order() -> dict[tuple[int, str], list[str]]:
        loader = make_loader(config, Corpus.open(folder), split="train", rank=0, world=1)
        seen: dict[tuple[int, str], set[str]] = {}
        for _ in range(80):
            for lane, pack in enumerate(loader.next_step()):
                for key in pack.keys:
                    source, epoch, document = key.split("/")[:3]
                    seen.setdefault((lane, source), set()).add(f"{epoch}/{document}")
        return {where: sorted(documents) for where, documents in seen.items()}

    before = order()
    content = bytearray((shard := Corpus.open(folder).shards("train")[0]).read_bytes())
    content[2000] ^= 1
    shard.write_bytes(content)
    after = order()
    for where in before:
        early = [d for d in before[where] if d.startswith("0/")]
        assert set(after[where]) & set(early) >= set(early) - {"0/train-0000"}


@pytest.mark.parametrize(
    "spoil, kind",
    [
        (lambda shard: shard.unlink(), "missing"),
        (lambda shard: index_path(shard).unlink(), "index"),
        (lambda shard: index_path(shard).write_bytes(b"nothing"), "index"),
        (lambda shard: shard.write_bytes(b""), "truncated"),
        (lambda shard: shard.write_bytes(b"x" * shard.stat().st_size), "checksum"),
    ],
)
def test_any_damage_is_counted_by_kind(tmp_path, spoil, kind):
    folder = make_corpus(tmp_path / "c", train_documents=32)
    spoil(Corpus.open(folder).shards("train")[2])
    config = make_config()
    config.loader.damaged_share = 0.9
    loader = make_loader(config, Corpus.open(folder), split="train", rank=0, world=1)
    run([loader], 20)
    assert loader.damaged.keys() == {kind}


def test_codes_outside_the_vocabulary_are_damage(tmp_path):
    folder = make_corpus(tmp_path / "c", train_documents=32)
    described = json.loads((folder / "vocabulary.json").read_text())
    described["codebooks"][1]["size"] = 60
    described["ranges"]["semantic"][1] -= 4
    (folder / "vocabulary.json").write_text(json.dumps(described))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"vocabulary": described}))
    loader = make_loader(make_config({"asr": 1.0}), Corpus.open(folder), split="train", rank=0, world=1)
    with pytest.raises(BadInput, match=r"damaged, more than loader\.damaged_share 0\.01"):
        run([loader], 1000)
    assert loader.damaged.keys() == {"codes"}


def test_too_much_damage_stops_the_run_through_the_prefetcher(tmp_path):
    folder = make_corpus(tmp_path / "c", train_documents=32)
    os.truncate(Corpus.open(folder).shards("train")[0], 1000)
    config = make_config()
    config.loader.prefetch = 3
    loader = make_loader(config, Corpus.open(folder), split="train", rank=0, world=1)
    for _ in range(2):  # and again, if asked again
        with pytest.raises(BadInput, match=r"of \d+ samples read are damaged"):
            run([loader], 1000)
    loader.close()


def test_damage_is_judged_from_a_hundred_samples_on():
    tally = DamageTally(0.01)
    tally.add(DamagedSample("json", "here"))
    tally.read = 99
    tally.judge()
    tally.read = 100  # one of a hundred is not above 1 %
    tally.judge()
    tally.add(DamagedSample("json", "there"))
    with pytest.raises(BadInput, match=r"2 of 100 .* here: json"):
        tally.judge()


# --- validation -------------------------------------------------------------------------------------------------


def test_validation_packs_are_the_same_for_every_world_and_number_of_lanes(folder):
    config = make_config(validation_packs=8)
    whole = validation_packs(config, Corpus.open(folder), rank=0, world=1)
    assert len(whole) == 8
    assert all("/valid-" in key for pack in whole for key in pack.keys)
    config.loader.lanes = 64
    for world in (2, 4, 8):
        parts = [validation_packs(config, Corpus.open(folder), rank=rank, world=world) for rank in range(world)]
        assert_same([pack for turn in zip(*parts, strict=True) for pack in turn], whole)


def test_sources_do_not_end_in_validation(folder):
    config = make_config({"asr": 1.0, "text": 3.0}, validation_packs=32)
    endless = validation_packs(config, Corpus.open(folder), rank=0, world=1)
    config.mixture.sources["text"].epochs = config.mixture.sources["asr"].epochs = 1
    assert_same(validation_packs(config, Corpus.open(folder), rank=0, world=1), endless)
    assert len(endless) == 32


def test_validation_packs_must_be_dealt_evenly(folder):
    with pytest.raises(BadInput, match=r"train\.validation_packs 6 must be a multiple of the 4"):
        validation_packs(make_config(validation_packs=6), Corpus.open(folder), rank=0, world=4)


def test_no_validation_needs_no_validation_split(tmp_path):
    folder = make_corpus(tmp_path / "c", valid_documents=0)
    assert validation_packs(make_config(validate_every=0), Corpus.open(folder), rank=0, world=1) == []
    with pytest.raises(BadInput, match="valid split"):
        validation_packs(make_config(), Corpus.open(folder), rank=0, world=1)


# --- prefetch ---------------------------------------------------------------------------------------------------


def test_prefetch_reads_only_so_far_ahead():
    made = []
    prefetcher = Prefetcher(lambda: made.append(len(made)) or len(made), depth=3)
    time.sleep(0.3)
    assert len(made) <= 4  # three in the queue, one in the hand
    assert [prefetcher.next() for _ in range(10)] == list(range(1, 11))
    prefetcher.close()


def test_prefetch_hands_out_what_came_before_the_error():
    results = iter([1, 2])
    prefetcher = Prefetcher(lambda: next(results), depth=5)
    assert (prefetcher.next(), prefetcher.next()) == (1, 2)
    for _ in range(2):
        with pytest.raises(StopIteration):
            prefetcher.next()
    prefetcher.close()


def test_closing_leaves_no_thread(folder):
    config = make_config()
    config.loader.prefetch = 2
    before = threading.active_count()
    loader = make_loader(config, Corpus.open(folder), split="train", rank=0, world=1)
    loader.next_step()
    assert threading.active_count() == before + 1
    loader.close()
    assert threading.active_count() == before


@pytest.mark.parametrize(("before", "after", "stop"), [(1, 2, 1), (2, 4, 3), (4, 1, 6)])
def test_damage_is_counted_once_wherever_the_stream_is_resumed(tmp_path, before, after, stop):
    """Counts of k steps at one world and the rest at another are those of a run that never stopped, whatever window
    the stop falls in; and each damaged sample of one pass counts once."""
    folder = make_corpus(tmp_path / "c", train_documents=60, documents_per_shard=2)
    planted = faults.plant(Corpus.open(folder).shards("train"))
    config = make_config({"text": 1.0}, sequence_length=48)
    config.loader.damaged_share = 0.9
    config.mixture.sources["text"].epochs = 1
    counts: Counter[str] = Counter()
    first = loaders(config, folder, before)
    for _ in range(stop):
        for rank in first:
            rank.next_step()
    state = json.loads(json.dumps(merge_states([rank.state_dict() for rank in first])))
    second = loaders(config, folder, after)
    for rank in second:
        rank.load_state_dict(state)
    while any(rank.has_next() for rank in second):
        for rank in second:
            rank.next_step()
    for rank in (*first, *second):
        counts.update(rank.damaged)
        rank.close()
    assert counts == planted
