"""Elastic exactness: whatever reads the lanes, and however often it stops, the stream of packs is the same."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.schema import Config, SourceConfig
from data_pipeline.corpus import Corpus
from data_pipeline.loader import Loader, make_loader, merge_states
from data_pipeline.shards import ShardReader, add_columns, read_index
from tests.data_pipeline.synthetic import make_config, make_corpus
from tests.ranks import free_port  # noqa: F401  (its fork server has imported what a worker needs)

DOCUMENTS = 40


def scored(folder: Path) -> Corpus:
    """A corpus whose utterances have a column to filter by."""
    corpus = Corpus.open(make_corpus(folder, train_documents=DOCUMENTS))
    rng = np.random.default_rng(3)
    for shard in corpus.shards("train"):
        add_columns(shard, {"score": rng.random(len(read_index(shard)))})
    return corpus


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Corpus:
    return scored(tmp_path_factory.mktemp("whole") / "c")


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> Corpus:
    """One shard is cut short, one has a flipped byte, one has lost its index."""
    corpus = scored(tmp_path_factory.mktemp("damaged") / "c")
    first, second, third, *_ = corpus.shards("train")
    os.truncate(first, int(read_index(first).offset[4]) + 10)
    content = bytearray(second.read_bytes())
    content[2000] ^= 1
    second.write_bytes(content)
    third.with_suffix(".index.npz").unlink()
    return corpus


class Stream:
    """All ranks of one world in this process."""

    def __init__(self, config: Config, corpus: Corpus, world: int, *, workers: int = 0, prefetch: int = 0) -> None:
        config.loader.workers, config.loader.prefetch = workers, prefetch
        self.ranks: list[Loader] = [
            make_loader(config, corpus, split="train", rank=rank, world=world) for rank in range(world)
        ]

    def steps(self, most: int) -> list[list]:
        """Packs of up to `most` steps in global order; fewer where the mixture ends."""
        steps = []
        while len(steps) < most and any(tuple(rank.has_next() for rank in self.ranks)):
            by_rank = [rank.next_step() for rank in self.ranks]
            steps.append([pack for turn in zip(*by_rank, strict=True) for pack in turn])
        return steps

    def state(self) -> dict:
        """As a checkpoint keeps it."""
        return json.loads(json.dumps(merge_states([rank.state_dict() for rank in self.ranks])))

    def load(self, state: dict) -> None:
        for rank in self.ranks:
            rank.load_state_dict(state)

    def close(self) -> None:
        for rank in self.ranks:
            rank.close()


def assert_same(steps: list[list], others: list[list]) -> None:
    """Keys, all arrays, and all else of every pack."""
    assert [[pack.keys for pack in step] for step in steps] == [[pack.keys for pack in step] for step in others]
    for one, other in zip(chain(*steps), chain(*others), strict=True):
        assert (one.lengths, one.padding, one.audio_seconds) == (other.lengths, other.padding, other.audio_seconds)
        for name in ("tokens", "labels", "loss_weight", "label_modality", "positions"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def trees(depth: int) -> st.SearchStrategy[dict[str, SourceConfig]]:
    """Mixtures nested up to `depth` levels, of several layouts, with and without ends and filters."""
    weight = st.floats(0.1, 3)
    node = st.builds(
        SourceConfig,
        layout=st.sampled_from(["asr", "continuation", "interleaved", "text", "tts"]),
        weight=weight,
        epochs=st.none() | st.integers(1, 2),
        filter=st.none() | st.sampled_from(["score > 0.3", "score < 0.8 and characters > 30", "characters > 30"]),
    )
    if depth:
        node = node | st.builds(SourceConfig, weight=weight, sources=trees(depth - 1))
    return st.dictionaries(st.sampled_from("abcd"), node, min_size=1, max_size=3)


def dividing(lanes: int, batch: int) -> list[int]:
    return [world for world in range(1, 13) if lanes % world == 0 and batch % world == 0]


SHAPES = [(4, 4), (8, 4), (4, 8), (12, 8), (6, 6), (12, 12), (1, 3), (64, 4)]


@st.composite
def runs(draw: st.DrawFn, workers: list[int]) -> dict:
    lanes, batch = draw(st.sampled_from(SHAPES))
    config = make_config(
        global_batch=batch, sequence_length=draw(st.integers(20, 300)), seed=draw(st.integers(0, 2**31))
    )
    config.mixture.sources = draw(trees(2))
    config.loader.lanes = lanes
    config.loader.packing_window = draw(st.integers(1, 6))
    config.loader.shuffle_documents = draw(st.sampled_from([1, 3, 7, 4096]))
    config.loader.damaged_share = 1.0
    worlds = st.sampled_from(dividing(lanes, batch))
    readers = st.fixed_dictionaries({"workers": st.sampled_from(workers), "prefetch": st.sampled_from([0, 0, 1, 3])})
    return {
        "config": config,
        "legs": draw(st.lists(st.tuples(worlds, st.integers(0, 6), readers), min_size=1, max_size=3)),
        "last": (draw(worlds), draw(readers)),
    }


def check_elastic(corpus: Corpus, run: dict) -> None:
    """Stops and goes on with other ranks, workers and prefetching; against one rank that reads step by step."""
    config, legs, (world, readers) = run["config"], run["legs"], run["last"]
    total = sum(steps for _, steps, _ in legs) + 3
    plain = Stream(config, corpus, 1)
    uninterrupted = plain.steps(total)
    stream, state, found = None, None, []
    for ranks, steps, how in [*legs, (world, total, readers)]:
        stream = Stream(config, corpus, ranks, **how)
        if state is not None:
            stream.load(state)
        found += stream.steps(min(steps, total - len(found)))
        state = stream.state()
        stream.close()
    assert_same(found, uninterrupted)
    assert state == plain.state()
    assert state["step"] == len(found)


@given(run=runs(workers=[0]), spoilt=st.booleans())
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_k_steps_at_one_world_and_the_rest_at_another_are_the_uninterrupted_run(whole, damaged, run, spoilt):
    check_elastic(damaged if spoilt else whole, run)


@given(run=runs(workers=[1, 2, 3]), spoilt=st.booleans())
@settings(max_examples=4, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_so_they_are_with_worker_processes(whole, damaged, run, spoilt):
    run["legs"] = [(ranks, steps, how) for ranks, steps, how in run["legs"][:1] if ranks <= 4]
    run["last"] = (1, run["last"][1])
    check_elastic(damaged if spoilt else whole, run)


@pytest.mark.parametrize("lanes, batch", [(4, 4), (12, 4), (4, 8)])
def test_all_documents_come_in_every_epoch_until_the_mixture_ends(whole, lanes, batch):
    config = make_config(global_batch=batch)
    config.loader.lanes = lanes
    config.mixture.sources = {
        "talk": SourceConfig(
            weight=2,
            sources={"asr": SourceConfig("asr", 1, epochs=2), "say": SourceConfig("continuation", 1, epochs=1)},
        ),
        "text": SourceConfig("text", 1, epochs=3),
    }
    for world in dividing(lanes, batch):
        stream = Stream(config, whole, world)
        steps = stream.steps(10_000)
        assert len(steps) < 10_000
        seen = Counter(key.split("#")[0] for step in steps for pack in step for key in pack.keys)
        documents = Counter(key.split("/")[0] for key in {key.rpartition("/")[0] for key in seen})
        if lanes <= batch:  # else the last step may meet none but lanes that have ended
            assert documents == {"talk.asr": 2 * 30, "talk.say": 30, "text": 3 * DOCUMENTS}
        assert not any(rank.has_next() for rank in stream.ranks)


# --- state ------------------------------------------------------------------------------------------------------


def test_state_is_a_few_kilobytes(whole):
    config = make_config(global_batch=8, sequence_length=512)
    config.loader.lanes = 8
    config.mixture.sources = {
        f"group{number}": SourceConfig(
            weight=1, sources={layout: SourceConfig(layout, 1) for layout in ("asr", "continuation", "text", "tts")}
        )
        for number in range(2)
    }
    stream = Stream(config, whole, 2, prefetch=4)
    stream.steps(100)
    assert len(json.dumps(stream.state())) < 6000
    assert len(json.dumps(stream.ranks[0].state_dict())) < 4000
    stream.close()


def test_ten_million_samples_in_ten_thousand_shards_open_and_resume_without_reading_one(tmp_path, monkeypatch):
    """Nothing but the manifest is read before the first document, and then only shards that the lanes stand in."""
    folder = make_corpus(tmp_path / "c", train_documents=100, documents_per_shard=100)
    described = json.loads((folder / "manifest.json").read_text())
    entry = described["splits"]["train"][0] | {"samples": 1000}
    shards = [f"train/many-{number:06d}.tar" for number in range(10_000)]
    described["splits"]["train"] = [entry | {"file": shard} for shard in shards]
    (folder / "manifest.json").write_text(json.dumps(described))
    for shard in shards:
        for suffix in (".tar", ".index.npz"):
            (folder / shard).with_suffix(suffix).symlink_to(folder / "train" / f"shard-000000{suffix}")
    opened: list[Path] = []
    monkeypatch.setattr(ShardReader, "__init__", _noting(ShardReader.__init__, opened))

    config = make_config(global_batch=8, sequence_length=1024)
    config.loader.lanes = 64
    state = Stream(config, Corpus.open(folder), 8).state() | {"step": 800}
    for lane in state["lanes"].values():
        lane["turn"] = 100
        lane["sources"] = {name: [3, 10_000, 1_000_000] for name in lane["sources"]}
    loader = make_loader(config, Corpus.open(folder), split="train", rank=0, world=8)
    loader.load_state_dict(state)
    assert not opened
    assert len(loader.next_step()) == 1
    assert 0 < len(opened) <= 5 * (4096 // 75 + 3)  # a block of spoken documents, for each of five sources


def _noting(begin: Callable[..., None], opened: list[Path]) -> Callable[..., None]:
    def noted(self: ShardReader, path: Path) -> None:
        opened.append(path)
        begin(self, path)

    return noted
