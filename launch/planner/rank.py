"""Topologies in the order of a step's predicted seconds, and what follows from these."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from heapq import heapify, heappop, heappush

from configs.schema import Config
from launch.planner.attached import Attached
from launch.planner.costs import NOTHING, ChunkCosts, chunk_costs, held_by_rank
from launch.planner.hardware import Gpu
from launch.planner.memory import StageMemory, memory
from launch.planner.order import in_flight
from launch.planner.step import bubble_seconds, step_seconds, transfer_seconds
from launch.planner.topologies import RECOMPUTES, Refusals, topologies, with_recompute
from launch.planner.work import Held, flops_per_token, model_work


@dataclass(frozen=True)
class Proposal:
    """A topology and what it comes to. seconds: of a step; memory: of each pipeline stage."""

    config: Config
    ranks: int
    gpu: Gpu
    costs: ChunkCosts
    memory: list[StageMemory]
    flops: float  # model FLOPs of a step

    @cached_property
    def seconds(self) -> float:
        return step_seconds(self.costs)

    @property
    def fullest(self) -> StageMemory:
        return max(self.memory, key=lambda stage: stage.total)

    @property
    def bubble(self) -> float:
        """Share of a step in which the busiest rank waits for others."""
        return bubble_seconds(self.costs) / self.seconds

    @property
    def exposed(self) -> float:
        """Share of a step that communication takes on the busiest rank, as far as nothing hides it."""
        parts = self.costs.parts
        inside = self.costs.microbatches * (parts.tensor + parts.context + parts.experts)
        ends = self.costs.gradients + self.costs.parameters
        return (inside + transfer_seconds(self.costs) + ends) / self.seconds

    @property
    def tokens(self) -> int:
        """Of a step, padding included."""
        return self.config.train.global_batch * self.config.train.sequence_length

    @property
    def mfu(self) -> float:
        """Model FLOPs a second over the GPUs' dense bf16 peak, as `train.flops` counts them."""
        return self.flops / self.seconds / (self.ranks * self.gpu.peak)

    @property
    def tokens_a_day(self) -> float:
        return self.tokens / self.seconds * 86400

    @property
    def gpu_hours(self) -> float:
        """For all of the stage's steps; saves, validation and failures come on top."""
        return self.config.train.steps * self.seconds * self.ranks / 3600


@dataclass(frozen=True)
class Ranking:
    """Proposals that fit, the fastest first; tried: topologies that could be trained, fitting or not; smallest: where
    none fits, the one whose parameters and their state need the least memory, with everything recomputed."""

    proposals: list[Proposal]
    tried: int
    smallest: Proposal | None
    refusals: Refusals


def rank(
    config: Config,
    ranks: int,
    gpu: Gpu,
    rows: int,
    headroom: float,
    attached: Attached = NOTHING,
    most: int = 10,
) -> Ranking:
    """The `most` fastest topologies that leave the share `headroom` of a GPU's memory free. Of those that differ in
    chunks and layout of the pipeline alone, or in recomputation, the fastest one stands for all.

    Topologies are taken in the order of their seconds. One that does not fit comes back with more recomputed, which
    only makes it slower, so that memory is asked for as few of them as will do.
    """
    refusals, room = Refusals(), gpu.memory * (1 - headroom)
    queue: list[tuple[float, int, int, Config]] = []  # seconds, tie-breaker, recomputation, config without it
    tried, smallest = 0, None
    for candidate in topologies(config, ranks, gpu, rows, refusals, attached):
        tried += 1
        needed = state_bytes(candidate, rows)
        if smallest is None or needed < smallest[0]:
            smallest = needed, candidate
        if needed <= room:
            seconds = step_seconds(chunk_costs(candidate, rows, ranks, gpu, attached=attached))
            queue.append((seconds, tried, 0, candidate))
    heapify(queue)
    found: dict[tuple[int, ...], Proposal] = {}
    while queue and len(found) < most:
        _, number, again, candidate = heappop(queue)
        chosen = with_recompute(candidate, *RECOMPUTES[again])
        if _sizes(chosen) in found:
            continue
        if max(stage.total for stage in held_by(chosen, rows, attached)) <= room:
            found[_sizes(chosen)] = propose(chosen, ranks, gpu, rows, attached)
        elif again + 1 < len(RECOMPUTES):
            slower = with_recompute(candidate, *RECOMPUTES[again + 1])
            seconds = step_seconds(chunk_costs(slower, rows, ranks, gpu, attached=attached))
            heappush(queue, (seconds, number, again + 1, candidate))
    nearest = None
    if smallest and not found:
        nearest = propose(with_recompute(smallest[1], *RECOMPUTES[-1]), ranks, gpu, rows, attached)
    return Ranking(list(found.values()), tried, nearest, refusals)


def propose(config: Config, ranks: int, gpu: Gpu, rows: int, attached: Attached = NOTHING) -> Proposal:
    """What one config comes to; it need not fit."""
    flops = flops_per_token(model_work(config, rows)) * config.train.global_batch * config.train.sequence_length
    return Proposal(
        config,
        ranks,
        gpu,
        chunk_costs(config, rows, ranks, gpu, attached=attached),
        held_by(config, rows, attached),
        flops + attached.flops(config),
    )


def state_bytes(config: Config, rows: int) -> float:
    """Bytes that weights, gradients and optimiser state take on a GPU of the fullest stage in bf16, activations left
    out: 2 + 4 + 12 a trained parameter, the last shared out (Rajbhandari et al. 2019, 1910.02054, section 3.1)."""
    parallel = config.parallel
    copies = (parallel.data or 1) * parallel.context
    shared = parallel.distributed_optimizer or (config.engine.name == "deepspeed" and config.engine.zero_stage > 0)

    def bytes_of(held: Held) -> float:
        dense = 2 * held.dense + (4 + 12 / (copies if shared else 1)) * held.trained_dense
        ranks = copies * parallel.tensor // parallel.expert if shared else 1
        return dense / parallel.tensor + (
            (2 * held.experts + (4 + 12 / max(1, ranks)) * held.trained_experts) / parallel.expert
        )

    return max(map(bytes_of, held_by_rank(config, model_work(config, rows), rows)))


def held_by(config: Config, rows: int, attached: Attached) -> list[StageMemory]:
    """Memory of each pipeline stage, with what stands beside the trunk. DeepSpeed's ZeRO is taken as the distributed
    optimiser, whatever its stage shares out more."""
    parallel, train = config.parallel, config.train
    microbatches = max(1, train.global_batch // (parallel.data or 1) // train.micro_batch)
    chunks = parallel.virtual_pipeline or 1
    flights = in_flight(0, parallel.pipeline, chunks, microbatches) / chunks
    if config.engine.name == "deepspeed" and config.engine.zero_stage:
        config = replace(config, parallel=replace(parallel, distributed_optimizer=True))
    return attached.add_memory(config, memory(config, rows), flights)


def _sizes(config: Config) -> tuple[int, ...]:
    parallel = config.parallel
    return (parallel.tensor, parallel.pipeline, parallel.context, parallel.expert, config.train.micro_batch)
