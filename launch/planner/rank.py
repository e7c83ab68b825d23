"""Topologies in the order of a step's predicted seconds, and what follows from these."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from configs.schema import Config
from launch.planner.attached import Attached
from launch.planner.costs import NOTHING, ChunkCosts, chunk_costs
from launch.planner.hardware import Gpu
from launch.planner.memory import StageMemory, memory
from launch.planner.order import in_flight
from launch.planner.step import bubble_seconds, step_seconds, transfer_seconds
from launch.planner.topologies import RECOMPUTES, Refusals, topologies, with_recompute
from launch.planner.work import flops_per_token, model_work


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
    """Proposals that fit, the fastest first; tried: topologies that could be trained, fitting or not; smallest: the one
    that needs the least memory."""

    proposals: list[Proposal]
    tried: int
    smallest: Proposal | None
    refusals: Refusals


def rank(config: Config, ranks: int, gpu: Gpu, rows: int, headroom: float, attached: Attached = NOTHING) -> Ranking:
    """headroom: share of a GPU's memory that is kept free. Of topologies that differ in chunks and layout of the
    pipeline alone, the fastest one is proposed."""
    refusals, room, tried = Refusals(), gpu.memory * (1 - headroom), 0
    best: dict[tuple[int, ...], Proposal] = {}
    smallest: tuple[float, Config] | None = None
    for candidate in topologies(config, ranks, gpu, rows, refusals, attached):
        tried += 1
        for recompute in RECOMPUTES:
            chosen = with_recompute(candidate, *recompute)
            held = held_by(chosen, rows, attached)
            needed = max(stage.total for stage in held)
            if smallest is None or needed < smallest[0]:
                smallest = needed, chosen
            if needed <= room:
                proposal = propose(chosen, ranks, gpu, rows, attached)
                key = _sizes(chosen)
                if key not in best or proposal.seconds < best[key].seconds:
                    best[key] = proposal
                break
    ordered = sorted(best.values(), key=lambda proposal: proposal.seconds)
    return Ranking(ordered, tried, propose(smallest[1], ranks, gpu, rows, attached) if smallest else None, refusals)


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


def held_by(config: Config, rows: int, attached: Attached) -> list[StageMemory]:
    """Memory of each pipeline stage, with what stands beside the trunk."""
    parallel, train = config.parallel, config.train
    microbatches = max(1, train.global_batch // (parallel.data or 1) // train.micro_batch)
    chunks = parallel.virtual_pipeline or 1
    flights = in_flight(0, parallel.pipeline, chunks, microbatches) / chunks
    return attached.add_memory(config, memory(config, rows), flights)


def _sizes(config: Config) -> tuple[int, ...]:
    parallel = config.parallel
    return (parallel.tensor, parallel.pipeline, parallel.context, parallel.expert, config.train.micro_batch)
