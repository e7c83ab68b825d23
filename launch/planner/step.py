"""A step's seconds in closed form, from the seconds of its chunks."""

from __future__ import annotations

from launch.planner.costs import ChunkCosts
from launch.planner.order import warm_up


def step_seconds(costs: ChunkCosts) -> float:
    """Of one step: the busiest rank's work, its wait for the others, transfers, and the end.

    A pipeline of p ranks and v chunks each fills and drains in (p - 1) / v micro-batches (Narayanan et al. 2021,
    2104.04473, section 2.2.2), of the other ranks' seconds. Transfers are waited for one by one under 1F1B, and
    interleaved only while the pipeline fills and drains (`launch.planner.order`).
    """
    return pipeline_seconds(costs) + costs.tail


def pipeline_seconds(costs: ChunkCosts) -> float:
    busy = busy_seconds(costs)
    return costs.microbatches * max(busy) + bubble_seconds(costs) + transfer_seconds(costs)


def busy_seconds(costs: ChunkCosts) -> list[float]:
    """Of one micro-batch on each pipeline rank."""
    both = [forward + backward for forward, backward in zip(costs.forward, costs.backward, strict=True)]
    return [sum(both[rank :: costs.pipeline]) for rank in range(costs.pipeline)]


def bubble_seconds(costs: ChunkCosts) -> float:
    """The busiest rank's wait for others to fill the pipeline and to drain it."""
    busy = busy_seconds(costs)
    return (sum(busy) - max(busy)) / costs.chunks


def transfer_seconds(costs: ChunkCosts) -> float:
    """Of transfers that are waited for, each way."""
    ranks = costs.pipeline
    if ranks == 1:
        return 0.0
    waited = warm_up(0, ranks, costs.chunks, costs.microbatches) + ranks - 1
    if costs.chunks == 1:
        waited = costs.microbatches + ranks - 1
    return 2 * costs.transfer * waited
