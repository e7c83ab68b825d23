"""What the device is, and how fast by its own measure: the ceilings that figures are held against."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch

from tests.benchmarks.gpu.shapes import Scale


def look(scale: Scale) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and memory; then a matrix product in bf16 and a copy, on random data; then whether torch.compile works."""
    if not torch.cuda.is_available():
        yield "", {"name": "cpu", "threads": torch.get_num_threads()}
        return
    about = torch.cuda.get_device_properties(0)
    yield (
        "",
        {
            "name": about.name,
            "memory_gib": about.total_memory / 2**30,
            "multiprocessors": about.multi_processor_count,
            "capability": f"{about.major}.{about.minor}",
            "cuda": torch.version.cuda,
        },
    )
    yield "ceilings", {"bf16_tflops": _product(8192), "copy_tb_a_second": _copy(2**32)}
    began = time.perf_counter()
    made = torch.compile(lambda x: (x * 2).sin().sum(-1))(torch.randn(1000, 1000, device="cuda"))
    yield "torch.compile", {"finite": bool(made.isfinite().all()), "seconds": time.perf_counter() - began}


def _product(size: int) -> float:
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / _each(lambda: left @ right, 10) / 1e12


def _copy(size: int) -> float:
    """Bytes read and bytes written."""
    source = torch.empty(size, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * size / _each(lambda: target.copy_(source), 10) / 1e12


def _each(call: Any, times: int) -> float:
    for _ in range(3):
        call()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / times
