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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest import mock

import torch

from configs.schema import Config
from data_pipeline.batch import Pack
from launch.planner.hardware import gpu_kind
from tests.absent_gpu.device import H200, pretended
from tests.absent_gpu.kernels import Kernel, compiled
from tests.absent_gpu.tensors import Account, without_numbers
from tests.benchmarks.gpu import training
from tests.benchmarks.gpu.plan import MEASUREMENTS, Measurement
from tests.benchmarks.gpu.rows import attended
from tests.benchmarks.gpu.shapes import FULL, backbone

_COPIES = ("cat", "clone", "copy_", "_to_copy")
_TOLD = 8


@dataclass
class Found:
    """Of a step, beside all kernels that were compiled. model, attention: FLOPs of the step, and those of attention in
    them; seconds: of this machine."""

    kernels: list[Kernel]
    account: Account
    model: float
    attention: float
    seconds: float = 0

    @property
    def launches(self) -> int:
        return sum(work.calls for work in self.account.operations.values())

    @property
    def by_operation(self) -> dict[str, int]:
        """Bytes of the tensors that an operation reads or writes, each once; most first."""
        sizes: Counter[str] = Counter()
        for (name, _), work in self.account.operations.items():
            sizes[name] += work.size
        return dict(sizes.most_common())

    def least_seconds(self) -> float:
        """Of the step, by the data sheet (a roofline): an operation takes as long as its FLOPs at the dense peak, or as
        its bytes at the memory's bandwidth; attention's own FLOPs come on top. Kernels are slower."""
        gpu = gpu_kind("h200")
        works = self.account.operations.values()
        return self.attention / gpu.peak + sum(max(work.flops / gpu.peak, work.size / gpu.bandwidth) for work in works)

    def copies(self, *without: str) -> float:
        """The share of bytes that is only moved, or cast, by lines of other files than `without`."""
        operations = self.account.operations.items()
        moved = sum(work.size for (name, line), work in operations if name in _COPIES and not line.startswith(without))
        return moved / sum(self.by_operation.values())


def step(given: dict[str, Any], layers: int | None = None, recompute: str = "none") -> Found:
    """Ours. given: of a `Measurement`. layers: as many, None: all. Raises whatever a GPU would refuse before it
    computes."""
    config, rows = _asked(given, layers, recompute)
    packs = given["packs"]
    batches = [training.collate(rows[start : start + packs]) for start in range(0, len(rows), packs)]
    with _on_the_device(config, rows) as found:
        engine, _ = training.build(config, FULL, training.device())
        for _ in range(2):  # all is compiled in the first
            found.account.clear()
            engine.train_step(batches, training.LEARNING_RATE, [], lambda _: True)
    return found


def peer(given: dict[str, Any], layers: int | None = None) -> Found:
    """transformers' step, compiled, as the benchmark takes it."""
    from tests.benchmarks.gpu import peers

    config, rows = _asked(given, layers)
    scale, place = replace(FULL, warm=1, timed=1), training.device()
    with _on_the_device(config, rows) as found:
        model = peers.llama(config.backbone, scale.ids.rows, "flex_attention", place)
        with mock.patch.object(torch.cuda, "reset_peak_memory_stats", found.account.clear):  # after the first step
            peers.measured(model, [rows], given["packs"], scale, place, compiled=True)
    return found


def _asked(given: dict[str, Any], layers: int | None, recompute: str = "none") -> tuple[Config, list[Pack]]:
    shape = backbone(given["shape"], given.get("positions", "rope"), FULL)
    shape.layers = layers or shape.layers
    config = training.config_of(shape, FULL, given["packs"], recompute)
    return config, training.data_of(FULL, given["packs"], given["micro_batches"])[0]


@contextmanager
def _on_the_device(config: Config, rows: list[Pack]) -> Iterator[Found]:
    shape = config.backbone
    attention = 12 * shape.layers * shape.hidden * attended(rows)
    torch._dynamo.reset()
    began = time.perf_counter()
    with without_numbers() as account, compiled(H200, account) as kernels:
        found = Found(kernels, account, training.flops_of(config, FULL, [rows]).model, attention)
        yield found
    gc.collect()
    found.seconds = time.perf_counter() - began


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
        alone()
        for one in MEASUREMENTS:
            for name, call in _calls(one, options.layers):
                if not options.only or any(words in name for words in options.only):
                    print("\n".join(_lines(name, call())), flush=True)
    return 0


def _calls(one: Measurement, layers: int | None) -> Iterator[tuple[str, Callable[[], Found]]]:
    if one.call == "peers:transformers":
        yield one.name, partial(peer, one.given, layers)
    if one.call == "training:ours" and not one.given.get("fp8"):
        for kind in one.given["recompute"]:
            name = one.name if kind == "none" else f"{one.name} (recompute {kind})"
            yield name, partial(step, one.given, layers, kind)


def _lines(name: str, found: Found) -> list[str]:
    worst = max(found.kernels, key=lambda kernel: kernel.spilled)
    least, moved = found.least_seconds(), sum(found.by_operation.values())
    mfu = found.model / least / gpu_kind("h200").peak
    return [
        f"{name}: {found.launches:,} launches, {moved / 2**30:,.0f} GiB read or written (only copied: "
        f"{100 * found.copies():.1f} %), {found.account.memory.peak / 2**30:.1f} GiB of memory",
        f"  by the data sheet at best {1000 * least:,.0f} ms, MFU {100 * mfu:.0f} %",
        f"  {len(found.kernels)} kernels compiled for {H200.name} in {found.seconds:.0f} s; spilled by a thread: "
        f"{worst.spilled} bytes at most ({worst.name})",
        "  the host asks for numbers at " + ", ".join(sorted(found.account.waits)),
        *(f"  {size / 2**30:8.1f} GiB  {operation}" for operation, size in list(found.by_operation.items())[:_TOLD]),
    ]


if __name__ == "__main__":
    sys.exit(main())
