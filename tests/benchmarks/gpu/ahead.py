"""A training step of the benchmark on a GPU that is not there: built at full size, every kernel compiled for it.

    python -m tests.benchmarks.gpu.ahead                        # all shapes, in a minute or two of one core
    python -m tests.benchmarks.gpu.ahead --only "3b sqrt_alibi" --layers 2

Nothing is computed and nothing is timed. What is told: kernels, whether registers hold what they need, launches of a
step, bytes that they move, and where the host waits for the device. Needs Triton (`install.sh`) and a C++ compiler.
"""

from __future__ import annotations

from tests.absent_gpu import driver

if __name__ == "__main__":
    driver.load()

import argparse
import gc
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch

from tests.absent_gpu.device import H200, pretended
from tests.absent_gpu.kernels import Kernel, compiled
from tests.absent_gpu.tensors import Account, without_numbers

_COPIES = ("cat", "clone", "copy_", "_to_copy")
_TOLD = 8


@dataclass(frozen=True)
class Found:
    """Of one step; its first, so that all kernels are compiled in it. seconds: of this machine."""

    kernels: list[Kernel]
    account: Account
    seconds: float

    @property
    def launches(self) -> int:
        return sum(calls for calls, _ in self.account.operations.values())

    @property
    def by_operation(self) -> dict[str, int]:
        """Bytes of the tensors that an operation reads or writes, each once; most first."""
        sizes: Counter[str] = Counter()
        for (name, _), (_, size) in self.account.operations.items():
            sizes[name] += size
        return dict(sizes.most_common())

    def copies(self, *without: str) -> float:
        """The share of bytes that is only moved, or cast, by lines of other files than `without`."""
        operations = self.account.operations.items()
        moved = sum(size for (name, line), (_, size) in operations if name in _COPIES and not line.startswith(without))
        return moved / sum(self.by_operation.values())


def step(given: dict[str, Any], layers: int | None = None, recompute: str = "none") -> Found:
    """given: of a `Measurement` of ours. layers: as many, None: all. Raises whatever a GPU would refuse before it
    computes."""
    from tests.benchmarks.gpu import training
    from tests.benchmarks.gpu.shapes import FULL, backbone

    packs = given["packs"]
    shape = backbone(given["shape"], given["positions"], FULL)
    shape.layers = layers or shape.layers
    config = training.config_of(shape, FULL, packs, recompute)
    rows = training.data_of(FULL, packs, given["micro_batches"])[0]
    batches = [training.collate(rows[start : start + packs]) for start in range(0, len(rows), packs)]
    torch._dynamo.reset()
    began = time.perf_counter()
    with without_numbers() as account, compiled(H200, account) as kernels:
        engine, _ = training.build(config, FULL, training.device())
        account.clear()
        engine.train_step(batches, training.LEARNING_RATE, [], lambda _: True)
        del engine
        gc.collect()
    return Found(kernels, account, time.perf_counter() - began)


def alone() -> None:
    """A process group of this rank, whose collectives do nothing."""
    import torch.distributed as dist
    import torch.testing._internal.distributed.fake_pg  # noqa: F401  # registers the backend

    from configs.schema import ParallelConfig
    from train.engines import process_groups

    dist.init_process_group("fake", store=dist.HashStore(), rank=0, world_size=1)
    process_groups.join(ParallelConfig())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="WORDS", help="measurements whose names hold one of these")
    parser.add_argument("--layers", type=int, help="instead of all of a shape's")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with pretended(H200):
        from tests.benchmarks.gpu.plan import MEASUREMENTS

        alone()
        for one in MEASUREMENTS:
            if one.call != "training:ours" or one.given.get("fp8"):
                continue
            for kind in one.given["recompute"]:
                name = one.name if kind == "none" else f"{one.name} (recompute {kind})"
                if not options.only or any(words in name for words in options.only):
                    print("\n".join(_lines(name, step(one.given, options.layers, kind))), flush=True)
    return 0


def _lines(name: str, found: Found) -> list[str]:
    worst = max(found.kernels, key=lambda kernel: kernel.spilled)
    total = sum(found.by_operation.values())
    waits = sorted(found.account.waits.items())
    return [
        f"{name}: {len(found.kernels)} kernels compiled for {H200.name} in {found.seconds:.0f} s, {found.launches} "
        f"launches, {total / 2**30:,.0f} GiB moved, copies {100 * found.copies():.1f} %",
        f"  spilled by a thread at most: {worst.spilled} bytes ({worst.name})",
        "  the host asks for numbers at " + ", ".join(f"{line} ({times})" for line, times in waits),
        *(f"  {size / 2**30:8.1f} GiB  {operation}" for operation, size in list(found.by_operation.items())[:_TOLD]),
    ]


if __name__ == "__main__":
    sys.exit(main())
