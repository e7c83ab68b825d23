"""How fast a rank's device multiplies matrices: a throttled GPU or a busy core shows here, whatever its driver says."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from launch.preflight.node import Report

if TYPE_CHECKING:
    import torch

_WIDTH = {"cuda": 8192, "cpu": 384}
_SECONDS = {"cuda": 3.0, "cpu": 0.5}  # of warm work; a GPU needs some until its clocks are what they stay


def speed(device: torch.device, working: Callable[[], object] = lambda: None) -> Report:
    """TFLOP/s of many equal products: of the median one on a GPU, in bf16, since clocks fall under load; of the best
    one on a CPU, in fp32, since cores are shared with whatever else runs. working: called once the device is at work.
    """
    import statistics

    import torch

    width = _WIDTH[device.type]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    left, right = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(2))
    out = left @ right
    working()
    took, end = [], time.perf_counter() + _SECONDS[device.type]
    while time.perf_counter() < end:
        start = time.perf_counter()
        torch.matmul(left, right, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took.append(time.perf_counter() - start)
    typical = statistics.median(took) if device.type == "cuda" else min(took)
    report = Report(figures={"compute": 2 * width**3 / typical / 1e12})
    if not bool(torch.isfinite(out).all()):
        report.troubles.append(f"{device}: a product of finite matrices is not finite")
    return report
