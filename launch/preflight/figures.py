"""The figures that nodes are compared by: names, units, and which share of the others' median is too little."""

from __future__ import annotations

from dataclasses import dataclass

from configs.checks.cluster import FIGURES as NAMES
from configs.schema import PreflightConfig

_OF_MEMORY = 0.9  # nodes of one kind have as much but for what firmware keeps; a failed module is a larger part


@dataclass(frozen=True)
class Figure:
    """title: as in the table. share: of the other nodes' median, below which a node is sick; 0: not compared."""

    title: str
    unit: str
    share: float


def figures(settings: PreflightConfig) -> dict[str, Figure]:
    """By name, in the order of the table."""
    slow, storage = settings.slow_share, settings.slow_storage_share
    known = {
        "compute": Figure("matrix product", "TFLOP/s", slow),  # the slowest of its ranks
        "gpu_clock": Figure("GPU clock", "MHz", slow),  # of the streaming multiprocessors, under load, the lowest
        "within": Figure("all-reduce within", "GB/s", slow),  # bus bandwidth among the ranks of the node
        "network": Figure("best pair", "GB/s", slow),  # with the best of its partners, the slower direction
        "write": Figure("write", "MB/s", storage),  # to the run folder, until it is on disk
        "read": Figure("read", "MB/s", storage),
        "memory": Figure("memory", "GB", _OF_MEMORY),
        "available": Figure("available", "GB", 0.0),
        "shared_memory": Figure("/dev/shm free", "GB", 0.0),
    }
    assert known.keys() == NAMES
    return known
