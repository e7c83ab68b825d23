"""Corpora behind a URL: the same packs as from a disk, in bounded space, whatever the storage does."""

from __future__ import annotations

import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import Config, SourceConfig
from data_pipeline.build import corpus_folder
from data_pipeline.corpus import Corpus
from data_pipeline.loader import make_loader
from data_pipeline.order import Cursor, Order
from data_pipeline.remote import files
from data_pipeline.remote.files import RemoteFolder
from data_pipeline.remote.mirror import Mirror, make_room
from data_pipeline.remote.opening import corpus_at, open_mirror
from data_pipeline.shards import DamagedSample, ShardReader, read_index
from launch import cli
from runtime.exits import BadInput
from tests.checkpoints.disks import small_disk
from tests.data_pipeline.storage import Storage
from tests.data_pipeline.synthetic import make_config, make_corpus
from tests.data_pipeline.test_loader import assert_same

SOUND = bytes(range(256)) * 4096  # a megabyte beside each utterance's few kilobytes
STEPS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "c", train_documents=16, documents_per_shard=4, audio=SOUND)


def config_at(cache: Path, where: str, **changes: int) -> Config:
    config = make_config(**changes)
    config.run.cache = str(cache)
    config.corpus.folder = where
    return config


def packs_of(config: Config, steps: int = STEPS) -> list:
    loader = make_loader(config, Corpus.open(corpus_folder(config)), split="train", rank=0, world=1)
    try:
        packs = [pack for _ in range(steps) for pack in loader.next_step()]
        assert loader.damaged == {}
        return packs
    finally:
        loader.close()


def taken(root: Path) -> int:
    """Bytes on the disk of all shards under `root`."""
    return sum(path.stat().st_blocks * 512 for path in root.rglob("*.tar"))


def test_packs_are_those_of_the_local_corpus_and_audio_stays_where_it_is(folder: Path, tmp_path: Path) -> None:
    expected = packs_of(config_at(tmp_path, str(folder)))
    with Storage(folder) as storage:
        config = config_at(tmp_path, storage.url)
        assert_same(packs_of(config), expected)
        tars = [path for path in storage.sent if path.endswith(".tar")]
        assert tars
        assert sum(storage.sent[path] for path in tars) < sum((folder / path).stat().st_size for path in tars) / 20
        assert taken(tmp_path) < sum((folder / path).stat().st_size for path in tars) / 10
        before = dict(storage.requests)
        assert_same(packs_of(config), expected)
        assert dict(storage.requests) == before, "nothing is fetched twice"


def test_worker_processes_read_it_too(folder: Path, tmp_path: Path) -> None:
    expected = packs_of(config_at(tmp_path, str(folder)))
    with Storage(folder) as storage:
        config = config_at(tmp_path, storage.url)
        config.loader.workers = 2
        assert_same(packs_of(config), expected)


def test_a_source_of_the_mixture_may_be_behind_a_url_of_any_kind(folder: Path, tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(f"{folder}/", "/corpora/one/", recursive=True)
    config, other = config_at(tmp_path, str(folder)), config_at(tmp_path, str(folder))
    for each, where in ((config, str(folder)), (other, "memory://corpora/one")):
        each.mixture.sources = {"tts": SourceConfig(layout="tts", weight=1.0, corpus=where)}
    assert_same(packs_of(other), packs_of(config))


def test_audio_comes_when_it_is_asked_for(folder: Path, tmp_path: Path) -> None:
    with Storage(folder) as storage:
        corpus = Corpus.open(corpus_at(storage.url, config_at(tmp_path, storage.url)))
        shard = corpus.shards("valid")[0]
        with ShardReader(shard) as reader:
            sample = int(np.flatnonzero(reader.index.audio_size)[0])
            assert reader.read_audio(sample) == SOUND
            assert reader.read(sample).key


# --- space ------------------------------------------------------------------------------------------------------


def test_the_cache_keeps_to_its_bound_and_the_packs_stay_the_same(folder: Path, tmp_path: Path) -> None:
    expected = packs_of(config_at(tmp_path, str(folder)), 3 * STEPS)
    with Storage(folder) as storage:
        config = config_at(tmp_path, storage.url)
        config.loader.shuffle_documents = 1
        local = config_at(tmp_path, str(folder))
        local.loader.shuffle_documents = 1
        expected = packs_of(local, 3 * STEPS)
        config.run.remote_shards_gb = 100e3 / 1e9
        assert_same(packs_of(config, 3 * STEPS), expected)
        assert 0 < taken(tmp_path) <= 100e3
        assert len(list(tmp_path.rglob("*.tar"))) < len(list(folder.glob("train/*.tar")))


def test_what_was_used_last_stays(tmp_path: Path) -> None:
    shards = []
    for number in range(4):
        shard = tmp_path / "root" / "mirror" / "train" / f"{number}.tar"
        shard.parent.mkdir(parents=True, exist_ok=True)
        shard.write_bytes(bytes(8192))
        shards.append(shard)
    for age, shard in enumerate([shards[2], shards[0], shards[3], shards[1]]):
        os.utime(shard, (1e9 + age, 1e9 + age))
    gone = make_room(tmp_path / "root", 2 * 8192, spare=shards[2])
    assert gone == [shards[0], shards[3]]
    assert [shard.exists() for shard in shards] == [False, True, True, False]


def test_a_full_disk_is_one_line_and_no_damage(folder: Path, tmp_path: Path) -> None:
    with Storage(folder) as storage, small_disk(tmp_path / "small", 300_000):
        config = config_at(tmp_path / "small", storage.url)
        corpus = Corpus.open(corpus_folder(config))
        shard = corpus.shards("train")[0]
        with ShardReader(shard) as reader, pytest.raises(BadInput, match=r"cannot keep .*tar: No space left"):
            reader.read_audio(int(np.flatnonzero(reader.index.audio_size)[0]))
        assert list(shard.parent.glob(".*.fetching")) == []


def read_all(where: tuple[str, str]) -> int:
    """In a process of its own: read every sample of the corpus once."""
    cache, url = where
    corpus = Corpus.open(corpus_folder(config_at(Path(cache), url)))
    read = 0
    for shard in corpus.shards("train"):
        with ShardReader(shard) as reader:
            read += sum(1 for sample in range(len(reader)) if reader.read(sample).key)
    return read


def test_processes_of_a_machine_fetch_a_shard_once(folder: Path, tmp_path: Path) -> None:
    with Storage(folder) as storage:
        with ProcessPoolExecutor(3, mp_context=get_context("forkserver")) as pool:
            counts = list(pool.map(read_all, [(str(tmp_path), storage.url)] * 3))
        assert len(set(counts)) == 1
        indexes = [path for path in storage.requests if path.endswith(".index.npz")]
        assert len(indexes) == len(list(folder.glob("train/*.tar")))
        assert {storage.requests[path] for path in indexes} == {1}


def keep_all(folder: str) -> None:
    """In a process of its own: have two thousand small files there."""
    mirror = Mirror(Path(folder), "unused", 10**9)
    for number in range(2000):
        mirror.fetch_once(Path(folder, str(number)), lambda _, file: file.write(b"x"))


def test_a_file_that_another_process_puts_in_place_is_never_missing(tmp_path: Path) -> None:
    with ProcessPoolExecutor(3, mp_context=get_context("forkserver")) as pool:
        list(pool.map(keep_all, [str(tmp_path)] * 3))
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"x"} and len(list(tmp_path.iterdir())) == 2000


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any),
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(0, 20),
)
def test_the_shards_that_come_next_are_those_of_the_next_block(
    counts: list[int], block: int, lanes: int, lane: int, moves: int
) -> None:
    lane %= lanes
    order = Order(counts, seed=3, block=block)
    ends = np.cumsum(counts)
    cursor = order.normal(Cursor(0, 0), lane, lanes)
    announced: list[int] | None = None
    met: set[int] = set()
    for _ in range(moves * block):
        begins = cursor.place % block == 0
        if begins:
            assert announced is None or met <= set(announced)
            announced, met = order.next_shards(cursor, lane, lanes), set()
            following = announced
        else:
            assert order.next_shards(cursor, lane, lanes) == []
        here = int(np.searchsorted(ends, order.document(cursor, lane, lanes), side="right"))
        later = order.normal(Cursor(cursor.epoch, cursor.place + 1), lane, lanes)
        if later.place % block == 0:  # the next block begins: its first document is in what was announced
            first = int(np.searchsorted(ends, order.document(later, lane, lanes), side="right"))
            assert first in following
        assert counts[here]
        cursor = later


# --- a storage that fails ---------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_FIRST_WAIT", 0.01)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("fault", [503, 429, "cut"])
def test_what_fails_for_a_while_is_waited_for(
    fault: int | str, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = packs_of(config_at(tmp_path, str(folder)))
    with Storage(folder) as storage:
        storage.fault = lambda path, number: fault if number <= 2 else None
        assert_same(packs_of(config_at(tmp_path, storage.url)), expected)
    assert "again in" in capfd.readouterr().err


@pytest.mark.usefixtures("quick")
def test_what_goes_on_failing_ends_the_run_with_one_line_and_is_no_damage(folder: Path, tmp_path: Path) -> None:
    with Storage(folder) as storage:
        config = config_at(tmp_path, storage.url)
        mirror = Mirror(corpus_folder(config), storage.url, 10**9)
        object.__setattr__(mirror, "remote", RemoteFolder(storage.url, patience=0.1))
        storage.fault = lambda path, number: 503
        with pytest.raises(BadInput, match=r"train/.*tar cannot be read \(503.*tried for 0.1 s"):
            mirror.open_shard(Corpus.open(mirror.folder).shards("train")[0], None)
        storage.fault = lambda path, number: "cut"
        with pytest.raises(BadInput, match=r"tried for 0\.1 s"):
            mirror.open_shard(Corpus.open(mirror.folder).shards("train")[0], None)


@pytest.mark.parametrize("status", [401, 403])
def test_what_is_refused_is_not_asked_for_again(status: int, folder: Path, tmp_path: Path) -> None:
    with Storage(folder) as storage:
        storage.fault = lambda path, number: status
        with pytest.raises(BadInput, match=rf"manifest\.json cannot be read: {status}"):
            open_mirror(storage.url, tmp_path, 10**9)
        assert storage.requests == {"manifest.json": 1}


def test_a_server_without_ranges_serves_too(folder: Path, tmp_path: Path) -> None:
    expected = packs_of(config_at(tmp_path, str(folder)))
    with Storage(folder, ranges=False) as storage:
        assert_same(packs_of(config_at(tmp_path, storage.url)), expected)


def test_missing_and_truncated_shards_cost_what_they_cost_on_a_disk(folder: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    tars = sorted(damaged.glob("train/*.tar"))
    tars[0].unlink()
    with tars[1].open("r+b") as file:
        file.truncate(int(read_index(tars[1]).offset[2]) + 10)
    tars[2].with_suffix(".index.npz").unlink()

    def found(corpus: Corpus) -> list[str]:
        kinds = []
        for shard in corpus.shards("train"):
            try:
                with ShardReader(shard) as reader:
                    for sample in range(len(reader)):
                        try:
                            reader.read(sample)
                        except DamagedSample as error:
                            kinds.append(error.kind)
            except DamagedSample as error:
                kinds.append(error.kind)
        return kinds

    with Storage(damaged) as storage:
        remote = found(Corpus.open(corpus_folder(config_at(tmp_path, storage.url))))
    assert remote == found(Corpus.open(damaged))
    assert {"missing", "truncated", "index"} == set(remote)


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("/nothing-here", "has no manifest.json"),
        ("nonsense://bucket/corpus", "nonsense://bucket/corpus cannot be read"),
    ],
)
def test_what_is_no_corpus_is_one_line(where: str, said: str, folder: Path, tmp_path: Path) -> None:
    with Storage(folder) as storage:
        url = storage.url + where if where.startswith("/") else where
        with pytest.raises(BadInput, match=said):
            open_mirror(url, tmp_path, 10**9)


def test_a_corpus_built_anew_at_the_same_url_is_another(folder: Path, tmp_path: Path) -> None:
    served = tmp_path / "served"
    shutil.copytree(folder, served)
    with Storage(served) as storage:
        config = config_at(tmp_path, storage.url)
        before = corpus_folder(config)
        shutil.rmtree(served)
        make_corpus(served, train_documents=8, seed=7)
        open_mirror.cache_clear()  # as in another process
        after = corpus_folder(config)
    assert before != after
    assert Corpus.open(before).content_hash == Corpus.open(folder).content_hash
    assert Corpus.open(after).content_hash == Corpus.open(served).content_hash


# --- the command line -------------------------------------------------------------------------------------------


def test_inspect_and_stats_look_through_a_url_and_verify_says_where_it_works(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEGAPHONE_CACHE", str(tmp_path))
    with Storage(folder) as storage:

        def told(*words: str) -> str:
            monkeypatch.setattr(sys, "argv", ["megaphone", "data", *words])
            assert cli.main(["data", *words]) == 0
            return capsys.readouterr().out

        with ShardReader(sorted(folder.glob("train/*.tar"))[0]) as reader:
            key = reader.read(1).key
        assert key in told("inspect", storage.url, "--sample", key)
        assert "train" in told("stats", storage.url)
        assert cli.main(["data", "verify", storage.url]) == 2
        assert "works where the corpus lies" in capsys.readouterr().err
