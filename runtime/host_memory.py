"""How this process gets memory for tensors on a CPU."""

from __future__ import annotations

import ctypes
from functools import cache

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # glibc's malloc.h


@cache
def keep_freed_memory() -> None:
    """Have freed memory reused rather than handed back to the system, for as long as the process lives.

    glibc asks the system for every large block by itself and returns it when it is freed, so that whoever takes the
    next one pays again for a page fault and the clearing of every 4 KiB: a tenth of a training step on a CPU, and four
    times the copy of a tensor. Where work repeats, what was freed is what is taken next. Idempotent; does nothing where
    malloc is another one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
