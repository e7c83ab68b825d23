"""What the planner found, as text."""

from __future__ import annotations

from itertools import groupby

from configs.schema import Config, Recompute
from launch.planner.hardware import GIB
from launch.planner.memory import StageMemory
from launch.planner.rank import Proposal
from launch.planner.step import bubble_seconds, transfer_seconds

_COLUMNS = ("#", "step s", "MFU", "bubble", "exposed", "tokens/day", "GPU-hours", "GiB a GPU", "topology")


def header(config: Config, ranks: int, gpu: str) -> str:
    train, stage = config.train, config.stage
    tokens = train.global_batch * train.sequence_length
    return (
        f"{config.backbone.name}, stage {stage.name}: {train.steps:,} steps of {train.global_batch:,} rows of "
        f"{train.sequence_length:,} tokens ({_count(tokens)} a step) on {ranks:,} {gpu}"
    )


def rows(proposals: list[Proposal]) -> list[str]:
    cells = [
        [
            str(number),
            f"{one.seconds:.2f}" if one.seconds >= 1 else f"{one.seconds:.4f}",
            f"{one.mfu:.1%}",
            f"{one.bubble:.1%}",
            f"{one.exposed:.1%}",
            _count(one.tokens_a_day),
            _count(one.gpu_hours),
            f"{one.fullest.total / GIB:.1f}",
            topology(one.config),
        ]
        for number, one in enumerate(proposals, 1)
    ]
    return _aligned([list(_COLUMNS), *cells])


def memory_rows(proposals: list[Proposal]) -> list[str]:
    """GiB a GPU of each proposal's fullest stage, part by part; parts that none of them has are left out."""
    parts = [parts_of(one.fullest) for one in proposals]
    there = [name for name, _ in parts[0] if any(dict(of_one)[name] for of_one in parts)]
    cells = [
        [str(number), *(f"{dict(of_one)[name] / GIB:.2f}" for name in there), str(one.memory.index(one.fullest))]
        for number, (one, of_one) in enumerate(zip(proposals, parts, strict=True), 1)
    ]
    return _aligned([["#", *there, "of pipeline stage"], *cells])


def _aligned(cells: list[list[str]]) -> list[str]:
    """Columns to the right, the last one to the left."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]) - 1)]
    return ["  ".join([*map(str.rjust, row[:-1], widths), row[-1]]) for row in cells]


def topology(config: Config, *, copies: bool = True) -> str:
    """copies: say how many data-parallel ones there are."""
    parallel = config.parallel
    sizes = [("TP", parallel.tensor), ("PP", parallel.pipeline), ("VPP", parallel.virtual_pipeline or 1)]
    sizes.append(("CP", parallel.context))
    if copies:
        sizes.append(("DP", parallel.data or 1))
    if config.backbone.experts is not None:
        sizes.append(("EP", parallel.expert))
    said = [f"{name} {size}" for name, size in sizes if size > 1 or name == "DP"]
    again = parallel.recompute.value
    if parallel.recompute is Recompute.selective:
        again = "+".join(parallel.recompute_modules)
    balanced = ", balanced layout" if parallel.pipeline_layout else ""
    return f"{' '.join(said)}, micro-batch {config.train.micro_batch}, recompute {again}{balanced}"


def settings(config: Config) -> str:
    """The topology as words of a command line."""
    parallel = config.parallel
    words = {
        "tensor": parallel.tensor,
        "sequence": parallel.sequence,
        "pipeline": parallel.pipeline,
        "virtual_pipeline": parallel.virtual_pipeline,
        "pipeline_layout": _layout(parallel.pipeline_layout),
        "context": parallel.context,
        "expert": parallel.expert,
        "distributed_optimizer": parallel.distributed_optimizer,
        "overlap_gradients": parallel.overlap_gradients,
        "overlap_parameters": parallel.overlap_parameters,
        "recompute": parallel.recompute.value,
    }
    if parallel.recompute is Recompute.selective:
        words["recompute_modules"] = f"[{','.join(parallel.recompute_modules)}]"
    said = [f"parallel.{key}={_word(value)}" for key, value in words.items()]
    return " ".join([*said, f"train.micro_batch={config.train.micro_batch}"])


def explanation(one: Proposal) -> list[str]:
    """Where a step's seconds go."""
    costs, parts = one.costs, one.costs.parts
    seconds = [
        ("matrix products", costs.microbatches * parts.products),
        ("attention", costs.microbatches * parts.attention),
        ("norms, activations, sums of gradients", costs.microbatches * parts.between),
        ("tensor-parallel communication", costs.microbatches * parts.tensor),
        ("context-parallel communication", costs.microbatches * parts.context),
        ("experts' communication", costs.microbatches * parts.experts),
        ("pipeline bubble", bubble_seconds(costs)),
        ("pipeline transfers", transfer_seconds(costs)),
        ("gradients over data-parallel ranks", costs.gradients),
        ("parameters over data-parallel ranks", costs.parameters),
        ("optimiser and host", costs.optimizer),
    ]
    lines = [f"a step of {one.seconds:.3f} s, {costs.microbatches} micro-batches, on its busiest pipeline rank:"]
    lines += [f"  {share / one.seconds:6.1%}  {share:9.4f} s  {name}" for name, share in seconds if share]
    return lines


def parts_of(stage: StageMemory) -> list[tuple[str, float]]:
    names = ("weights", "gradients", "optimizer", "activations", "logits", "encoder", "heads", "buffers")
    return [(name, getattr(stage, name)) for name in names]


def _layout(text: str | None) -> str | None:
    """A layout with stages that repeat written once, quoted for a shell and for Hydra."""
    if text is None:
        return None
    stages = [(stage, len(list(equal))) for stage, equal in groupby(text.split("|"))]
    last = stages.pop()[0]
    short = "".join(f"{stage}|" if count == 1 else f"({stage}|)*{count}" for stage, count in stages)
    return f"'\"{short}{last}\"'"


def _word(value: object) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _count(number: float) -> str:
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.3g}"
