"""What a checkpoint of 1 GB costs training, waited for and in the background: `python tests/benchmarks/async_save.py`.

The state is an engine's own: fp32 parameters and Adam moments, after real steps. Steps go on between saves until the
save in the background is done. Rows: one process, and two with the distributed optimiser, each of which writes a
share. Figures are rank 0's; the middle one of several saves. The stall is what the training thread waits for: of a
save in the background its beginning, what is left of the copy when the next update is due, and the small agreements at
each step until it is done. The step beside the copy is shown by itself, since they share cores and memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

VOCABULARY, TOKENS = 16384, 128
PARTS = ("begin", "state", "pieces", "plan", "update", "copy", "write", "commit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--saves", type=int, default=5, help="of each kind")
    parser.add_argument("--folder", help="where checkpoints are written and removed; a temporary one unless set")
    options = parser.parse_args()
    print(
        "| processes | saved | stall s | of waiting | step s | step beside the copy s | steps while writing s "
        "| peak memory over steps alone MiB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    lines = []
    for world in (1, 2):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            lines += _run(world, folder, options.saves)
    print(
        "\nSeconds of each part, on rank 0. `begin` is state, pieces, plan and small things; `update` what an update "
        "waited\nfor. Where a copy is made, write begins with it, and both it and commit are in the background.\n"
    )
    print("| processes | saved | " + " | ".join(PARTS) + " |")
    print("|---|---|" + "---|" * len(PARTS))
    print("\n".join(lines))


def _run(world: int, folder: str, saves: int) -> list[str]:
    context = multiprocessing.get_context("spawn")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    here, there = context.Pipe()
    ranks = [context.Process(target=_rank, args=(rank, world, port, folder, saves, there)) for rank in range(world)]
    for rank in ranks:
        rank.start()
    there.close()  # so that a rank that dies ends the wait
    found = here.recv()
    for rank in ranks:
        rank.join()
    waited = found["waited"]["stall"]
    lines = []
    for name, row in found.items():
        print(
            f"| {world} | {name} | {row['stall']:.3f} | {100 * row['stall'] / waited:.1f} % | {row['step']:.2f} "
            f"| {row['copying']:.2f} | {row['beside']:.2f} | {row['memory']:.0f} |",
            flush=True,
        )
        parts = " | ".join(f"{row['parts'].get(part, 0):.3f}" for part in PARTS)
        lines.append(f"| {world} | {name} | {parts} |")
    size = found["waited"]["size"] / 1e9
    print(f"| {world} | ({size:.2f} GB on disk) | | | | | | |")
    return lines


def _rank(rank: int, world: int, port: int, folder: str, saves: int, pipe: Any) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    import torch

    from train.engines import optional_kernels
    from train.engines.cuda_on_cpu import emulate_cuda

    torch.set_num_threads(1)
    optional_kernels.hush_megatron()
    emulate_cuda()
    found = _measure(Path(folder), world, saves)
    if rank == 0:
        pipe.send(found)
        sys.stdout.flush()
    os._exit(0)


def _measure(folder: Path, world: int, saves: int) -> dict[str, dict[str, Any]]:
    from checkpoints.saving import Contents, Saver

    engine, batch = _engine(world)
    saver = Saver(folder)
    contents = Contents(state={}, topology={})
    step = 0

    blocked = 0.0  # what the last update waited for the copy, seconds

    def settle(_: Any) -> bool:
        nonlocal blocked
        started = time.perf_counter()
        saver.settle()
        blocked = time.perf_counter() - started
        return True

    def train() -> float:
        nonlocal step
        step += 1
        started = time.perf_counter()
        engine.train_step([batch], 1e-4, [], settle)
        return time.perf_counter() - started - blocked

    alone = statistics.median([train() for _ in range(6)][1:])
    train_only = _peak_memory(train)
    rows: dict[str, dict[str, Any]] = {}
    for name in ("waited", "in the background"):
        background = name != "waited"
        if background:
            saver.prepare(engine.sharded_state(optimizer=True, loading=False))
        stalls, copying, beside, parts = [], [], [], []
        _reset_peak()
        for _ in range(saves):
            train()
            started = time.perf_counter()
            state = engine.sharded_state(optimizer=True, loading=False)
            collected = time.perf_counter() - started
            if background:
                saver.begin(step, state, contents)
            else:
                saver.save(step, state, contents)
            del state
            begun = stall = time.perf_counter() - started
            update = 0.0
            for turn in range(1_000_000):
                if not saver.busy:
                    break
                (beside if turn else copying).append(train())
                update += blocked
                started = time.perf_counter()
                saver.poll()
                stall += blocked + time.perf_counter() - started
            stalls.append(stall)
            parts.append({"state": collected, "begin": begun, "update": update, **saver.seconds})
            for other in range(step):
                shutil.rmtree(folder / f"step-{other:08d}", ignore_errors=True)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        rows[name] = {
            "stall": statistics.median(stalls),
            "step": alone,
            "copying": statistics.median(copying) if copying else alone,
            "beside": statistics.median(beside) if beside else alone,
            "memory": _peak() - train_only,
            "parts": {part: statistics.median(turn.get(part, 0.0) for turn in parts) for part in PARTS},
            "size": size,
        }
    return rows


def _engine(world: int) -> tuple[Any, Any]:
    """A model of 84 million parameters, and a batch for it."""
    import numpy as np

    from configs.schema import BackboneConfig, Config
    from data_pipeline.batch import Pack, collate
    from train.engines import process_groups
    from train.engines.megatron import MegatronEngine
    from train.objectives.next_token import NextToken

    config = Config()
    config.run.name = "benchmark"
    config.backbone = BackboneConfig(
        name="84M", layers=10, hidden=768, ffn=2048, heads=12, kv_heads=12, tokenizer="none", max_positions=TOKENS
    )
    config.train.sequence_length = TOKENS
    config.parallel.distributed_optimizer = world > 1
    engine = MegatronEngine(config, VOCABULARY, NextToken(("text",)), process_groups.join(config.parallel))
    ids = np.random.default_rng(0).integers(0, VOCABULARY, TOKENS + 1)
    pack = Pack(
        tokens=ids[:-1],
        labels=ids[1:],
        loss_weight=np.ones(TOKENS, np.float32),
        label_modality=np.zeros(TOKENS, np.uint8),
        lengths=(TOKENS,),
        keys=("sample",),
        padding=0,
        audio_seconds=0.0,
    )
    return engine, collate([pack])


def _peak() -> float:
    """Highest resident memory since `_reset_peak`, MiB."""
    return _status("VmHWM")


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _status(field: str) -> float:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) / 1024


def _peak_memory(action: Any) -> float:
    _reset_peak()
    action()
    return _peak()


if __name__ == "__main__":
    main()
