"""Peak memory and time, forward and backward, of the chunked vocabulary loss beside plain logits.

Plain is Megatron-Core's own way (all logits by one product, then its vocabulary-parallel cross entropy) and torch's
(`F.cross_entropy`). fp32, one thread, hidden size 512. Every measurement is a process of its own, they take turns,
and a figure is the median of the runs. Memory is how far the high-water mark (VmHWM, set back beforehand) rises above
what hidden states and head took already, so it counts gradients, logits and every copy of them, and what the allocator
keeps. Loss on half of the places is what a layout such as asr or tts comes to.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

HIDDEN = 512
VARIANTS = {
    "megatron, plain": ("megatron", 0, 1.0),
    "torch, plain": ("torch", 0, 1.0),
    "ours, one chunk": ("ours", 0, 1.0),
    "ours, chunks of 1024": ("ours", 1024, 1.0),
    "ours, chunks of 256": ("ours", 256, 1.0),
    "ours, chunks of 256, loss on half": ("ours", 256, 0.5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[74_752, 168_064])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        tokens, rows, kind, chunk_and_share = options.one
        chunk, share = chunk_and_share.split(",")
        print(json.dumps(measure(int(tokens), int(rows), kind, int(chunk), float(share))))
        return
    print(
        "| vocabulary | tokens | | seconds | of megatron's | peak MB | of megatron's |\n|---|---|---|---|---|---|---|"
    )
    for rows in options.vocabularies:
        for tokens in options.tokens:
            found: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
            for _ in range(options.runs):
                for name, (kind, chunk, share) in VARIANTS.items():
                    found[name].append(_process(str(tokens), str(rows), kind, f"{chunk},{share}"))
            seconds = {name: median(run["seconds"] for run in runs) for name, runs in found.items()}
            peak = {name: median(run["megabytes"] for run in runs) for name, runs in found.items()}
            first = next(iter(VARIANTS))
            for name in VARIANTS:
                print(
                    f"| {rows:,} | {tokens:,} | {name} | {seconds[name]:.2f} | {seconds[name] / seconds[first]:.2f} | "
                    f"{peak[name]:,.0f} | {peak[name] / peak[first]:.2f} |",
                    flush=True,
                )


def _process(*one: str) -> dict[str, float]:
    ran = subprocess.run(
        [sys.executable, __file__, "--one", *one],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(json.loads(ran.stdout.splitlines()[-1]))


def measure(tokens: int, rows: int, kind: str, chunk: int, share: float) -> dict[str, float]:
    """Seconds, and megabytes of peak memory beyond the inputs, of one forward and backward pass."""
    import torch

    step = _step(kind, chunk)
    step(*_inputs(8, 64, 1.0))  # libraries load their parts
    states, weight, labels, weights = _inputs(tokens, rows, share)
    Path("/proc/self/clear_refs").write_text("5")
    before = _kilobytes("VmRSS")
    started = time.perf_counter()
    step(states, weight, labels, weights)
    seconds = time.perf_counter() - started
    peak = _kilobytes("VmHWM")  # before anything else is looked at
    assert states.grad is not None and weight.grad is not None and bool(torch.isfinite(weight.grad).all())
    return {"seconds": seconds, "megabytes": (peak - before) / 1024}


def _kilobytes(name: str) -> int:
    return int(
        next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)).split()[1]
    )


def _inputs(tokens: int, rows: int, share: float) -> Any:
    import torch

    generator = torch.Generator().manual_seed(0)
    states = torch.randn(tokens, HIDDEN, generator=generator).requires_grad_()
    weight = torch.randn(rows, HIDDEN, generator=generator).mul_(0.02).requires_grad_()
    labels = torch.randint(rows, (tokens,), generator=generator)
    weights = (torch.arange(tokens) < share * tokens).float()
    return states, weight, labels, weights


def _step(kind: str, chunk: int) -> Any:
    import torch
    import torch.nn.functional as F

    from train.engines.cuda_on_cpu import emulate_cuda

    emulate_cuda()
    from configs.schema import ParallelConfig
    from train.engines import process_groups
    from train.models.heads.terms import Targets
    from train.models.heads.vocabulary_loss import vocabulary_loss

    os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    process_groups.join(ParallelConfig())
    from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

    def megatron(states: Any, weight: Any, labels: Any, weights: Any) -> None:
        losses = vocab_parallel_cross_entropy(torch.matmul(states[:, None], weight.t()), labels[:, None])
        (losses[:, 0] * weights).sum().backward()

    def plain(states: Any, weight: Any, labels: Any, weights: Any) -> None:
        (F.cross_entropy(states @ weight.t(), labels, reduction="none") * weights).sum().backward()

    def ours(states: Any, weight: Any, labels: Any, weights: Any) -> None:
        places = None if weights.all() else weights.nonzero()[:, 0]
        vocabulary_loss(states, weight, Targets(labels, weights, places, chunk=chunk))[0].backward()

    return {"megatron": megatron, "torch": plain, "ours": ours}[kind]


if __name__ == "__main__":
    main()
