"""`python -m tests.gpu_ahead FILE`: what `tests/test_gpu_ahead.py` looks at, as JSON. A process of its own: torch finds
its device as it is imported."""

from __future__ import annotations

from tests.absent_gpu import driver

driver.load()

import json  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402
from unittest import mock  # noqa: E402

import torch  # noqa: E402

from tests.absent_gpu.device import H200, pretended  # noqa: E402
from tests.absent_gpu.tensors import without_numbers  # noqa: E402


def steps() -> dict[str, Any]:
    """Training steps of two layers of the 3B shape, otherwise whole: as they are, and with FlexAttention's kernels as
    the compiler would cut them."""
    from tests.benchmarks.gpu import ahead
    from train.models.attention import kernels

    ahead.alone()
    given = {"shape": "3b", "packs": 1, "micro_batches": 2}
    found = {positions: ahead.step({**given, "positions": positions}, layers=2) for positions in ("rope", "sqrt_alibi")}
    with mock.patch.object(kernels, "WIDE", None):
        found["as the compiler cuts"] = ahead.step({**given, "positions": "sqrt_alibi"}, layers=1)
    return {
        name: {
            "kernels": [vars(kernel) for kernel in one.kernels],
            "waits": dict(one.account.waits),
            "launched": [(operation, work.calls) for (operation, _), work in one.account.operations.items()],
            "copies": one.copies("train/engines/megatron_optimizer.py"),
            "copied at": [line for operation, line in one.account.operations if operation in ("cat", "clone")],
        }
        for name, one in found.items()
    }


def device() -> dict[str, Any]:
    """What the absent GPU itself does with an operation, a number that is asked for, and what depends on numbers."""
    with without_numbers() as account:
        here = torch.arange(6.0, device="cuda").reshape(2, 3).requires_grad_()
        (here @ here.t()).sum().backward()
        asked = here.sum().item()
        product = next(work for (operation, _), work in account.operations.items() if operation == "mm")
        return {
            "gradient": [str(here.grad.device), list(here.grad.shape)] if here.grad is not None else None,
            "product": vars(product),
            "memory": account.memory.peak,
            "asked": asked,
            "waits": list(account.waits.values()),
            "a mask as an index": _refused(lambda: here[here > 1]),
            "a host's tensor": _refused(lambda: here + torch.ones(2, 3)),
            "on the host": torch.arange(3).tolist(),
        }


def _refused(call: Callable[[], Any]) -> str | None:
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return None


if __name__ == "__main__":
    torch.set_num_threads(1)
    with pretended(H200):
        Path(sys.argv[1]).write_text(json.dumps({"device": device(), "steps": steps()}), encoding="utf-8")
