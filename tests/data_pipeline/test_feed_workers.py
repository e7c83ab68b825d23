"""Worker processes of the loader: what they hand over, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zlib

import pytest

from data_pipeline.corpus import Corpus
from data_pipeline.feed_workers import WorkerFeed
from data_pipeline.loader import Loader, make_loader
from runtime.exits import BadInput
from tests.data_pipeline.synthetic import make_config, make_corpus
from tests.ranks import free_port  # noqa: F401  (its fork server has imported what a worker needs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus") / "c", train_documents=32)


def loader_of(folder, *, workers: int, **changes) -> Loader:
    config = make_config()
    config.loader.workers = workers
    for name, value in changes.items():
        setattr(config.loader, name, value)
    return make_loader(config, Corpus.open(folder), split="train", rank=0, world=1)


def processes_of(loader: Loader) -> list[int]:
    assert isinstance(loader._feed, WorkerFeed)
    return loader._feed.processes


def wait_until(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_no_more_processes_than_lanes_and_none_left_behind(folder):
    loader = loader_of(folder, workers=7, prefetch=2)
    loader.next_step()
    pids = processes_of(loader)
    assert len(pids) == 4 and all(map(is_running, pids))
    loader.close()
    wait_until(lambda: not any(map(is_running, pids)))
    assert processes_of(loader) == []
    assert loader.next_step() and not set(processes_of(loader)) & set(pids)  # and on it goes
    loader.close()


def test_a_killed_worker_ends_the_rank_with_a_clear_error(folder):
    loader = loader_of(folder, workers=2)
    loader.next_step()
    os.kill(processes_of(loader)[1], signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(RuntimeError, match=r"data worker 1 of 2 died \(killed, perhaps for want of memory\)"):
        for _ in range(1000):
            loader.next_step()
    assert time.monotonic() - started < 20
    loader.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_workers_leave_stop_signals_to_the_rank(folder, number):
    loader, plain = loader_of(folder, workers=1), loader_of(folder, workers=0)
    first = [pack.keys for pack in loader.next_step()]
    os.kill(processes_of(loader)[0], number)
    rest = [pack.keys for _ in range(10) for pack in loader.next_step()]
    assert first + rest == [pack.keys for _ in range(11) for pack in plain.next_step()]
    loader.close()


RANK = """
import os, signal, sys, time, zlib
from pathlib import Path
from data_pipeline.corpus import Corpus
from data_pipeline.loader import make_loader
from runtime.signals import StopFlag
from tests.data_pipeline.synthetic import make_config
if __name__ == "__main__":
    stop = StopFlag().install()
    config = make_config()
    config.loader.workers = 2
    config.loader.prefetch = 2000 if sys.argv[2] == "forget" else 0
    loader = make_loader(config, Corpus.open(Path(sys.argv[1])), split="train", rank=0, world=1)
    keys = [pack.keys for pack in loader.next_step()]
    print(*loader._feed.processes, flush=True)
    if sys.argv[2] == "wait":
        time.sleep(60)
    if sys.argv[2] == "forget":
        time.sleep(3)  # until all pipes are full
        sys.kept = loader
        sys.exit()
    for number in (signal.SIGTERM, signal.SIGUSR1):
        os.killpg(0, number)
        time.sleep(0.3)
    keys += [pack.keys for _ in range(200) for pack in loader.next_step()]
    print(zlib.crc32(str(keys).encode()), bool(stop), flush=True)
    loader.close()
"""


def keys_of(loader: Loader, steps: int) -> list[tuple[str, ...]]:
    return [pack.keys for _ in range(steps) for pack in loader.next_step()]


def start_rank(folder, *arguments: str) -> tuple[subprocess.Popen, list[int]]:
    """A process with a loader of two workers, in a process group of its own; with the workers and their server."""
    rank = subprocess.Popen(
        [sys.executable, "-c", RANK, str(folder), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert rank.stdout is not None
    pids = list(map(int, rank.stdout.readline().split()))
    assert len(pids) == 2 and all(map(is_running, pids))
    return rank, [*pids, parent_of(pids[0])]


def parent_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as stat:
        return int(stat.read().rpartition(")")[2].split()[1])


def test_workers_go_with_a_rank_that_is_killed(folder):
    rank, others = start_rank(folder, "wait")
    rank.kill()
    rank.wait()
    wait_until(lambda: not any(map(is_running, others)))


def test_a_rank_that_does_not_close_its_loader_ends_with_its_workers(folder):
    """Its workers take no SIGTERM, and wait for it to read."""
    rank, others = start_rank(folder, "forget")
    rank.communicate(timeout=60)
    assert rank.returncode == 0
    wait_until(lambda: not any(map(is_running, others)))


def test_stop_signals_to_every_process_stop_only_what_the_rank_stops(folder):
    """As Slurm sends them to a job step."""
    rank, others = start_rank(folder, "go on")
    said, _ = rank.communicate(timeout=120)
    plain = keys_of(loader_of(folder, workers=0), 201)
    assert rank.returncode == 0
    assert said.split() == [str(zlib.crc32(str(plain).encode())), "True"]
    wait_until(lambda: not any(map(is_running, others)))


def test_damage_found_by_workers_is_counted_as_if_found_here(tmp_path):
    folder = make_corpus(tmp_path / "c", train_documents=32)
    os.truncate(Corpus.open(folder).shards("train")[1], 4000)
    loaders = [loader_of(folder, workers=workers, damaged_share=0.9) for workers in (0, 2)]
    for loader in loaders:
        for _ in range(20):
            loader.next_step()
    assert loaders[0].damaged == loaders[1].damaged and loaders[0].damaged["truncated"] > 3
    assert loaders[0].damaged_names == loaders[1].damaged_names
    loaders[1].close()


def test_too_much_damage_stops_the_run_in_one_line(tmp_path):
    folder = make_corpus(tmp_path / "c", train_documents=32)
    os.truncate(Corpus.open(folder).shards("train")[0], 1000)
    loader = loader_of(folder, workers=2)
    for _ in range(2):  # and again, if asked again
        with pytest.raises(BadInput, match=r"of \d+ samples read are damaged") as caught:
            for _ in range(1000):
                loader.next_step()
        assert "\n" not in str(caught.value)
    loader.close()


def test_what_a_worker_refuses_is_refused_here_in_one_line(folder):
    config = make_config(sequence_length=3)  # below a group of codes
    config.loader.workers = 1
    loader = make_loader(config, Corpus.open(folder), split="train", rank=0, world=1)
    for _ in range(2):
        with pytest.raises(BadInput, match=r"train\.sequence_length 3 is shorter than one group") as caught:
            loader.next_step()
        assert "\n" not in str(caught.value)
    loader.close()
