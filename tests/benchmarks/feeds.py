"""Prints what it costs the training process to be handed a pack by a thread, and by a worker process (pickled through a
pipe, or as tensors in shared memory), and how fast the whole loader reads with each number of workers."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from data_pipeline.batch import Pack
from data_pipeline.corpus import Corpus
from data_pipeline.loader import make_loader
from data_pipeline.prefetch import Prefetcher
from tests.data_pipeline.synthetic import make_config, make_corpus

PACKS, WARM_UP = 300, 20


class Same(IterableDataset):
    """One pack, again and again; `shared`: as a dictionary of tensors."""

    def __init__(self, pack: Pack, shared: bool) -> None:
        self._item: Any = pack
        if shared:
            self._item = {field.name: getattr(pack, field.name) for field in fields(pack)}

    def __iter__(self) -> Iterator[Any]:
        while True:
            if isinstance(self._item, dict):
                copies = {name: np.array(value) for name, value in self._item.items() if isinstance(value, np.ndarray)}
                yield self._item | {name: torch.from_numpy(value) for name, value in copies.items()}
            else:
                yield self._item


def as_it_is(item: Any) -> Any:
    return item


def hand_over(take: Callable[[], Any]) -> tuple[float, float]:
    """Milliseconds a pack, and of them CPU of this process."""
    for _ in range(WARM_UP):
        take()
    started, cpu = time.perf_counter(), time.process_time()
    for _ in range(PACKS):
        take()
    return 1e3 * (time.perf_counter() - started) / PACKS, 1e3 * (time.process_time() - cpu) / PACKS


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        corpus = Corpus.open(make_corpus(Path(name) / "corpus", train_documents=400))
        print("| pack of | kilobytes | handed over by | ms a pack | of it CPU of the training process |")
        print("|---|---|---|---|---|")
        for length in (2048, 8192):
            config = make_config(sequence_length=length, global_batch=4)
            pack = make_loader(config, corpus, split="train", rank=0, world=1).next_step()[0]
            size = sum(
                getattr(pack, f.name).nbytes for f in fields(pack) if isinstance(getattr(pack, f.name), np.ndarray)
            )
            thread = Prefetcher(lambda pack=pack: pack, 8)  # type: ignore[misc]
            ways: dict[str, Callable[[], Any]] = {"a thread": thread.next}
            for way, shared in (("a process, pickled", False), ("a process, shared memory", True)):
                options = {"batch_size": None, "num_workers": 1, "collate_fn": as_it_is, "prefetch_factor": 8}
                stream = iter(DataLoader(Same(pack, shared), multiprocessing_context="forkserver", **options))
                ways[way] = stream.__next__
            for way, take in ways.items():
                wall, cpu = hand_over(take)
                print(f"| {length} tokens | {size / 1000:.0f} | {way} | {wall:.2f} | {cpu:.2f} |", flush=True)
            thread.close()
            del ways, stream, take

        print("\n| loader.workers | tokens/s, packs of 2048 | CPU of the training process, us a pack |\n|---|---|---|")
        for workers in (0, 1, 2):
            config = make_config(sequence_length=2048, global_batch=8)
            config.loader.lanes, config.loader.packing_window = 8, 16
            config.loader.workers, config.loader.prefetch = workers, 4
            loader = make_loader(config, corpus, split="train", rank=0, world=1)
            loader.next_step()
            started, cpu, tokens = time.perf_counter(), time.process_time(), 0
            for _ in range(64):
                tokens += sum(2048 - pack.padding for pack in loader.next_step())
            seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
            loader.close()
            print(f"| {workers} | {tokens / seconds:,.0f} | {1e6 * cpu / 64 / 8:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
