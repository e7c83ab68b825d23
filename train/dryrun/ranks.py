"""One process as any rank of a world that is not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from configs.checks.topology import model_parallel_size
from configs.schema import Config
from train.engines import process_groups


class Waiting(Exception):
    """A rank wants to know what another one, not built yet, has to tell."""


@dataclass(frozen=True)
class World:
    """All ranks of a topology, and which of them differ in what they hold.

    Megatron-Core numbers pipeline stages outermost. Within a stage tensor-parallel ranks hold parts of one shape,
    context- and data-parallel ones the same (but for which part of the optimiser's state), and experts are dealt out
    in turns.
    """

    size: int
    pipeline: int
    experts: int = 1  # expert-parallel ranks

    @property
    def of_stage(self) -> int:
        """Ranks of a pipeline stage."""
        return self.size // self.pipeline

    def stage(self, rank: int) -> int:
        return rank // self.of_stage

    def alike(self, rank: int) -> int:
        """The first rank that holds the like of what `rank` holds."""
        first = self.stage(rank) * self.of_stage
        return first + (rank - first) % self.experts

    def distinct(self) -> list[int]:
        return sorted({self.alike(rank) for rank in range(self.size)})


def world_of(config: Config, gpus: int) -> World:
    assert gpus % model_parallel_size(config) == 0, "configs.checks has seen to it"
    return World(gpus, config.parallel.pipeline, config.parallel.expert)


@dataclass
class Exchange:
    """What ranks tell each other in objects: told when each is built, and again until all have heard all."""

    world: World
    told: dict[tuple[int, int], Any] = field(default_factory=dict)  # by rank and its number of the call
    rank: int = 0
    calls: int = 0

    def begin(self, rank: int) -> None:
        self.rank, self.calls = self.world.alike(rank), 0

    def all_gather_object(self, found: list[Any], mine: Any, group: dist.ProcessGroup | None = None) -> None:
        """In place of `torch.distributed.all_gather_object`. Raises Waiting where somebody has not told yet."""
        call, self.calls = self.calls, self.calls + 1
        self.told[self.rank, call] = mine
        ranks = dist.get_process_group_ranks(group or dist.group.WORLD)
        sources = [(self.world.alike(rank), call) for rank in ranks]
        if any(source not in self.told for source in sources):
            raise Waiting
        found[:] = [self.told[source] for source in sources]


@contextmanager
def joined(config: Config, exchange: Exchange, rank: int) -> Iterator[None]:
    """Inside, this process is `rank` of a world whose collectives succeed at once and move nothing."""
    new_group = dist.new_group

    def fake_group(ranks: list[int] | None = None, *_: Any, **__: Any) -> Any:
        return new_group(ranks)  # Megatron-Core asks for gloo by name

    exchange.begin(rank)
    with (
        mock.patch.object(dist, "new_group", fake_group),
        mock.patch.object(dist, "all_gather_object", exchange.all_gather_object),
    ):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=exchange.world.size)
        try:
            process_groups.join(config.parallel)
            yield
        finally:
            process_groups.leave()
