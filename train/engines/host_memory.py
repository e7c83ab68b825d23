"""How this process gets memory for tensors on a CPU."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # glibc's malloc.h


def keep_freed_memory() -> None:
    """Have freed memory reused rather than handed back to the system, for as long as the process lives.

    glibc asks the system for every large block by itself and returns it when it is freed, so that each step pays again
    for a page fault and the clearing of every 4 KiB of its activations and gradients: a tenth of a step on a CPU.
    Steps are alike, so what one has freed is what the next one takes. Does nothing where malloc is another one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
