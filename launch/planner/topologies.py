"""The topologies that a model could be trained on with so many GPUs: all that `configs.checks` lets pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache

from configs.checks import check
from configs.pipeline import balanced, format_layout, head_cost
from configs.schema import BackboneConfig, Config, ParallelConfig, Recompute
from launch.planner.attached import Attached
from launch.planner.hardware import Gpu
from runtime.exits import BadInput

MICRO_BATCHES = (1, 2, 4, 8)
SHORTEST_SHARE = 2048  # tokens of a sequence on a context-parallel rank; fewer make attention's exchange dear
MOST_CHUNKS = 12  # model chunks a pipeline rank
# Cheapest first: what fits with less is not tried with more.
RECOMPUTES: tuple[tuple[Recompute, tuple[str, ...]], ...] = (
    (Recompute.none, ()),
    (Recompute.selective, ("layernorm",)),
    (Recompute.selective, ("layernorm", "mlp")),
    (Recompute.full, ()),
)


@dataclass
class Refusals:
    """Why topologies were refused, by what was said."""

    reasons: Counter[str] = field(default_factory=Counter)

    def most(self) -> str:
        return self.reasons.most_common(1)[0][0] if self.reasons else "no topology divides it"


def topologies(
    config: Config, ranks: int, gpu: Gpu, rows: int, refusals: Refusals, attached: Attached
) -> Iterator[Config]:
    """Configs that train on `ranks` GPUs, without recomputation; it and whether they fit in memory is the caller's.

    Tensor parallelism stays within a node. rows: of the vocabulary, padding included. Sequence parallelism, the
    distributed optimiser and overlap are on wherever they can be: each costs nothing.
    """
    for parallel in _parallels(config, ranks, gpu, rows, attached):
        for micro in MICRO_BATCHES:
            train = replace(config.train, micro_batch=micro)
            candidate = replace(config, parallel=parallel, train=train)
            try:
                check(candidate, ranks)
            except BadInput as refusal:
                refusals.reasons[str(refusal)] += 1
            else:
                yield candidate


def with_recompute(config: Config, recompute: Recompute, modules: tuple[str, ...]) -> Config:
    parallel = replace(config.parallel, recompute=recompute, recompute_layers=1)
    if modules:
        parallel = replace(parallel, recompute_modules=list(modules))
    return replace(config, parallel=parallel)


def _parallels(config: Config, ranks: int, gpu: Gpu, rows: int, attached: Attached) -> Iterator[ParallelConfig]:
    backbone, length = config.backbone, config.train.sequence_length
    megatron = config.engine.name == "megatron"
    plain = replace(ParallelConfig(), bucket_size=config.parallel.bucket_size if megatron else None)
    contexts = [size for size in _divisors(ranks) if size == 1 or (megatron and length / size >= SHORTEST_SHARE)]
    for tensor in (size for size in _divisors(ranks) if size <= gpu.node):
        for context in (size for size in contexts if ranks % (tensor * size) == 0):
            for pipeline in _divisors(ranks // tensor // context):
                if pipeline > backbone.layers:
                    continue
                data = ranks // (tensor * context * pipeline)
                shared = megatron and data * context > 1
                base = replace(
                    plain,
                    tensor=tensor,
                    context=context,
                    pipeline=pipeline,
                    data=data,
                    sequence=tensor > 1 and megatron,
                    distributed_optimizer=shared,
                    overlap_gradients=shared,
                    overlap_parameters=shared,
                )
                ends = _end_costs(config, rows, tensor, attached)
                for chunks, layout in _layouts(backbone, pipeline, ends, megatron):
                    for expert in _experts(backbone, tensor * context * data):
                        yield replace(base, virtual_pipeline=chunks, pipeline_layout=layout, expert=expert)


def _end_costs(config: Config, rows: int, tensor: int, attached: Attached) -> tuple[float, float]:
    """What comes before the first layer and after the last one, in layers; what is attached is not cut over
    tensor-parallel ranks."""
    backbone, length = config.backbone, config.train.sequence_length
    layer = 3 * 2.0 * length * backbone.hidden * rows / head_cost(backbone, rows)  # FLOPs, forward and backward
    first, last = attached.first_flops() * tensor / layer, attached.last_flops(length) * tensor / layer
    return first, head_cost(backbone, rows) + last


def _layouts(
    backbone: BackboneConfig, pipeline: int, ends: tuple[float, float], megatron: bool
) -> list[tuple[int | None, str | None]]:
    """Numbers of chunks and layouts of a pipeline: even ones, and those balanced by cost."""
    if pipeline == 1:
        return [(None, None)]
    found: list[tuple[int | None, str | None]] = []
    for chunks in range(1, MOST_CHUNKS + 1 if megatron else 2):
        written = None if chunks == 1 else chunks
        stages = pipeline * chunks
        if backbone.layers % stages == 0:
            found.append((written, None))
        if stages <= backbone.layers + 1:
            found.append((written, _balanced(backbone.layers, stages, *ends)))
    return found


@lru_cache(maxsize=4096)
def _balanced(layers: int, stages: int, first: float, last: float) -> str:
    return format_layout(balanced(layers, stages, head_cost=last, first_cost=first))


def _experts(backbone: BackboneConfig, stage: int) -> list[int]:
    if backbone.experts is None:
        return [1]
    count = backbone.experts.count
    return [size for size in _divisors(count) if stage % size == 0]


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
