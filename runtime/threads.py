"""How many threads torch computes with in a process, and what is settled before several of them do."""

from __future__ import annotations

import os
from functools import cache

# Of those that torch's CPU kernels hand to MKL (aten/src/ATen/cpu/vml.h); all are defined at a half.
_ELEMENTWISE = (
    *("acos", "asin", "atan", "cos", "sin", "tan", "tanh"),
    *("erf", "erfc", "erfinv", "exp", "log", "log10", "sqrt"),
)


def use_threads(count: int | None = None) -> None:
    """Let torch compute with `count` threads; None: with as many as OMP_NUM_THREADS says, one where it says nothing."""
    import torch

    torch.set_num_threads(count or int(os.environ.get("OMP_NUM_THREADS", "1")))
    settle_vector_math()


@cache
def settle_vector_math() -> None:
    """Have MKL choose its kernel of every elementwise function, in one thread.

    It does so as a function is called for the first time, and where two threads come first together, one of them may
    be given a kernel of about 11 bits for that one call: cosines of the first sample off by 1e-4, right ever after.
    oneMKL 2024.2 does that, which torch's CPU wheels carry (pytorch/pytorch#188792).
    """
    import torch

    for dtype in (torch.float32, torch.float64):
        half = torch.full((1,), 0.5, dtype=dtype)
        for name in _ELEMENTWISE:
            getattr(torch, name)(half)
