"""How far nodes' clocks are apart, asked as NTP does (RFC 5905, section 8): there and back, the quickest answer counts.

A clock that is off makes logs lie about what came first, and files look older than what they were made from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

_ASKED = 5  # times


def offsets(
    leaders: Mapping[str, int], group: Any, rank: int, clock: Callable[[], float] = time.time
) -> dict[str, float]:
    """Seconds that each node's clock is ahead of rank 0's, on rank 0; nothing elsewhere. All leaders call this.

    leaders: a rank of each node, by name, rank 0 among them. group: a gloo group of theirs. clock: this node's.
    """
    import torch
    import torch.distributed as dist

    said = torch.zeros(1, dtype=torch.float64)
    if rank != 0:
        for _ in range(_ASKED):
            dist.recv(said, 0, group)
            said[0] = clock()
            dist.send(said, 0, group)
        return {}
    found = {}
    for name, peer in leaders.items():
        answers = []
        for _ in range(_ASKED if peer else 0):
            start = clock()
            dist.send(said, peer, group)
            dist.recv(said, peer, group)
            end = clock()
            answers.append((end - start, float(said[0]) - (start + end) / 2))
        found[name] = min(answers)[1] if answers else 0.0
    return found
