"""The order of everything in a step, against what Megatron-Core does in one of the real engine."""

from __future__ import annotations

import pytest

from launch.planner.order import program
from tests.launch.planner.recorded import steps_of_engine, told
from tests.ranks import run_ranks

# Pipeline ranks, chunks, micro-batches; with fewer micro-batches than ranks, and as few as all are in the warm-up.
ON_FOUR = [(4, 1, 6), (4, 1, 2), (4, 2, 8), (4, 2, 4)]
ON_TWO = [(2, 1, 4), (2, 2, 4), (2, 4, 6), (2, 2, 2)]


def test_every_rank_does_what_megatron_core_does() -> None:
    """All of it: passes, transfers that are begun together, and where each is waited for."""
    for world, topologies in ((4, ON_FOUR), (2, ON_TWO)):
        for rank, recorded in enumerate(run_ranks(steps_of_engine, world, topologies)):
            for topology, real in zip(topologies, recorded, strict=True):
                ranks, chunks, microbatches = topology
                planned = told(program(rank, ranks, chunks, microbatches))
                assert planned == real, f"rank {rank} of {topology}"


def test_an_interleaved_pipeline_takes_whole_rounds_of_microbatches() -> None:
    with pytest.raises(ValueError, match="6 micro-batches are no multiple of the 4 ranks"):
        program(0, 4, 2, 6)
