"""Lanes read by processes of their own, through PyTorch's DataLoader."""

from __future__ import annotations

import atexit
import fcntl
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from configs.schema import Config
from data_pipeline.corpus import Corpus
from data_pipeline.damage import DamageTally
from data_pipeline.feed import Served, serve
from data_pipeline.lanes import Lane
from data_pipeline.mixture import open_mixture
from runtime.signals import PROFILE_SIGNAL, STOP_SIGNALS
from runtime.workers import leave_with_parent

_MESSAGE = 256 * 1024  # bytes; more or fewer of them at once are slower
_PLACE = 21  # bytes of a pack with one column, for each of its places
_PIPE = 1024 * 1024  # bytes that a worker writes before it waits; what Linux lets any user have
_NOT_THEIRS = (*STOP_SIGNALS, PROFILE_SIGNAL)  # signals that are for the rank alone


@dataclass
class _Lanes(IterableDataset):
    """Some lanes, in the order of their turns, as messages of packs: of `step` first, soon of `most`. The worker that
    iterates opens the corpus for itself."""

    config: Config
    corpus: Corpus
    split: str
    numbers: Sequence[int]
    states: Mapping[int, dict[str, Any]]
    step: int
    most: int

    def __iter__(self) -> Iterator[bytes]:
        counted = DamageTally(allowed_share=1.0)  # who merges the counts of all workers judges them
        mixture = open_mixture(self.config, self.corpus, self.split, counted)
        lanes = [Lane.of(self.config, mixture, number) for number in self.numbers]
        for lane in lanes:
            lane.restore(self.states[lane.number])
        served, together = serve(lanes), self.step
        while some := list(islice(served, together)):
            yield pickle.dumps(some, pickle.HIGHEST_PROTOCOL)
            together = min(2 * together, self.most)


class WorkerFeed:
    """Lanes dealt to `workers` processes: lane number i of this feed goes to process i mod `workers`.

    Each process is one DataLoader's, so that it is asked for its packs when their turn comes, whatever numbers of lanes
    and processes there are. A message costs as much as a few packs: the first holds what a process has to give to a
    step of `step` packs; later ones are longer, up to _MESSAGE bytes and a quarter of what is read ahead. Processes are
    forked from a clean server (no threads, no CUDA, no InfiniBand to inherit), ignore stop signals, and leave when this
    process does, however it ends.
    """

    def __init__(
        self,
        config: Config,
        corpus: Corpus,
        split: str,
        numbers: Sequence[int],
        *,
        workers: int,
        step: int,
        ahead: int,
    ) -> None:
        self._numbers = list(numbers)
        self._workers = min(workers, len(self._numbers))
        each = max(1, step // self._workers)
        fitting = _MESSAGE // (_PLACE * config.train.sequence_length)
        self._most = most = max(each, min(fitting, ahead // self._workers // 4))
        self._make = lambda mine, states: _Lanes(config, corpus, split, mine, states, each, most)
        self._ahead = max(1, ahead // self._workers // most)
        self._streams: list[Any] = []
        self._here: list[deque[Served]] = []

    def start(self, states: Mapping[int, dict[str, Any]], turn: int) -> None:
        self.close()
        self._states, self._turn = states, turn

    def next(self) -> Served:
        if not self._streams:
            _start_server()
            self._streams = [iter(loader) for loader in self._loaders()]
            self._here = [deque() for _ in self._streams]
            for stream in self._streams:
                _widen(stream._worker_result_queue._reader)
            self._at_exit = partial(_kill, [process for stream in self._streams for process in stream._workers])
            atexit.register(self._at_exit)
        worker = self._turn % len(self._numbers) % self._workers
        here = self._here[worker]
        try:
            if not here:
                here.extend(pickle.loads(next(self._streams[worker])))
        except RuntimeError as error:
            if "exited unexpectedly" not in str(error):
                raise
            raise RuntimeError(
                f"data worker {worker} of {self._workers} died (killed, perhaps for want of memory): {error}"
            ) from None
        self._turn += 1
        return here.popleft()

    @property
    def ready(self) -> int:
        waiting = sum(stream._worker_result_queue.qsize() for stream in self._streams)
        return waiting * self._most + sum(map(len, self._here))

    def close(self) -> None:
        if self._streams:
            atexit.unregister(self._at_exit)
        self._here = []
        self._streams = []  # a DataLoader's iterator ends its process when nobody holds it any more

    @property
    def processes(self) -> list[int]:
        """Process ids of the workers, while there are any."""
        return [process.pid for stream in self._streams for process in stream._workers]

    def _loaders(self) -> list[DataLoader]:
        count = len(self._numbers)
        in_turn = [(self._turn + later) % count for later in range(count)]
        datasets = [
            self._make([self._numbers[lane] for lane in in_turn if lane % self._workers == worker], self._states)
            for worker in range(self._workers)
        ]
        return [
            DataLoader(
                dataset,
                batch_size=None,
                num_workers=1,
                collate_fn=_as_it_is,
                prefetch_factor=self._ahead,
                multiprocessing_context="forkserver",
                worker_init_fn=_settle,
            )
            for dataset in datasets
        ]


def _start_server() -> None:
    """Start the server that worker processes are forked from, with stop signals blocked for it and for all it forks:
    Slurm sends them to every process of a job step, and without its server a rank takes its workers for dead."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _NOT_THEIRS)
    try:
        resource_tracker.ensure_running()  # unblocks some of them again
        signal.pthread_sigmask(signal.SIG_BLOCK, _NOT_THEIRS)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _widen(reader: Connection) -> None:
    """Give the pipe behind `reader` room for whole messages, where the system allows it: each time that it is full,
    two processes change places."""
    with suppress(OSError, AttributeError):
        fcntl.fcntl(reader.fileno(), fcntl.F_SETPIPE_SZ, _PIPE)


def _kill(workers: Sequence[BaseProcess]) -> None:
    """For a process that ends without closing its feed: else it would wait for workers, which take no SIGTERM and may
    be waiting for it to read."""
    for worker in workers:
        worker.kill()


def _as_it_is(served: Any) -> Any:
    return served


def _settle(worker: int) -> None:
    """In a new worker process."""
    torch.set_num_threads(1)
    for number in _NOT_THEIRS:
        signal.signal(number, signal.SIG_IGN)  # the rank decides when to stop; an older server may not block them
    threading.Thread(target=leave_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
