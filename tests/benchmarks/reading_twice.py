"""Prints what it costs peers of one data-parallel rank (TP, PP) to read its packs each for itself, against one of them
reading and broadcasting over gloo: CPU time, and how long a step of training waits."""

from __future__ import annotations

import pickle
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.distributed as dist

from data_pipeline.batch import Pack
from data_pipeline.corpus import Corpus
from data_pipeline.loader import Loader, make_loader
from tests.data_pipeline.synthetic import make_config, make_corpus
from tests.ranks import run_ranks

STEPS, PACKS, LENGTH = 30, 8, 2048
COMPUTE = 0.5  # seconds of a step in which the GPU works and the CPU has time to read ahead


def broadcast(packs: list[Pack] | None) -> list[Pack]:
    """The packs of rank 0, on every rank: arrays as one tensor of bytes, all else pickled before them."""
    buffers: list[pickle.PickleBuffer] = []
    if packs is not None:
        head = pickle.dumps(packs, protocol=5, buffer_callback=buffers.append)
        views = [buffer.raw() for buffer in buffers]
        sizes = [len(head), *map(len, views)]
        payload = torch.frombuffer(bytearray(b"".join([head, *views])), dtype=torch.uint8)
        count = torch.tensor([len(sizes)])
    else:
        count = torch.zeros(1, dtype=torch.int64)
    dist.broadcast(count, 0)
    shape = torch.tensor(sizes) if packs is not None else torch.zeros(int(count), dtype=torch.int64)
    dist.broadcast(shape, 0)
    if packs is None:
        payload = torch.empty(int(shape.sum()), dtype=torch.uint8)
    dist.broadcast(payload, 0)
    if packs is not None:
        return packs
    head_bytes, *rest = (part.numpy() for part in payload.split(shape.tolist()))
    found: list[Pack] = pickle.loads(head_bytes.tobytes(), buffers=rest)
    return found


def measure(folder: str, way: str, prefetch: int, compute: float) -> dict[str, float]:
    """Means over the steps of one rank: seconds waited for packs, and CPU seconds of the whole process."""
    dist.init_process_group("gloo")
    config = make_config(sequence_length=LENGTH, global_batch=PACKS)
    config.loader.lanes, config.loader.packing_window, config.loader.prefetch = PACKS, 16, prefetch
    reads = way == "each reads" or dist.get_rank() == 0
    loader = make_loader(config, Corpus.open(Path(folder)), split="train", rank=0, world=1) if reads else None
    for _ in range(4):
        _next(loader, way)
    dist.barrier()
    waited, cpu = 0.0, time.process_time()
    for _ in range(STEPS):
        time.sleep(compute)
        dist.barrier()
        started = time.perf_counter()
        _next(loader, way)
        waited += time.perf_counter() - started
    cpu = time.process_time() - cpu
    if loader:
        loader.close()
    dist.destroy_process_group()
    return {"waited": waited / STEPS, "cpu": cpu / STEPS}


def _next(loader: Loader | None, way: str) -> None:
    packs = loader.next_step() if loader else None
    if way == "one broadcasts":
        broadcast(packs)


def main() -> None:
    print(f"a step is {PACKS} packs of {LENGTH} tokens; milliseconds a step, means of {STEPS} steps")
    print("| peers | reading | ahead of a step of | waited, mean of peers | waited, longest | CPU, all peers |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        corpus = str(make_corpus(Path(name) / "corpus", train_documents=400))
        for peers in (2, 4):
            for prefetch, compute in ((0, 0.0), (4, COMPUTE)):
                for way in ("each reads", "one broadcasts"):
                    found: list[dict[str, Any]] = run_ranks(measure, peers, corpus, way, prefetch, compute)
                    waits = [1e3 * rank["waited"] for rank in found]
                    cpu = 1e3 * sum(rank["cpu"] for rank in found)
                    ahead = f"{1e3 * compute:.0f} ms" if prefetch else "not"
                    print(
                        f"| {peers} | {way} | {ahead} | {sum(waits) / peers:.2f} | {max(waits):.2f} | {cpu:.1f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
