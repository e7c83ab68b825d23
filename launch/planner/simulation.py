"""`megaphone simulate`: a step on several numbers of GPUs, played pass by pass, and what failures leave of it."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from configs.checks import check
from configs.checks.topology import model_parallel_size
from configs.schema import Config
from launch.checkpoint_size import of_stage
from launch.planner import table
from launch.planner.attached import Attached, with_audio_input
from launch.planner.command import stage_on_gpus, vocabulary_rows
from launch.planner.goodput import DAY, Reliability, best_interval, goodput
from launch.planner.hardware import Gpu, gpu_kind
from launch.planner.picture import Drawn, svg
from launch.planner.rank import Proposal, propose
from launch.planner.schedule import Timeline, simulate
from launch.planner.work import learnt
from runtime.exits import DONE, BadInput

_COLUMNS = (
    "GPUs",
    "DP",
    "micro-batches",
    "step s",
    "bubble",
    "idle",
    "MFU",
    "save every",
    "goodput",
    "days",
    "GPU-hours",
)


@dataclass(frozen=True)
class Played:
    """One number of GPUs. interval: seconds of training between saves; kept: goodput."""

    proposal: Proposal
    timeline: Timeline
    reliability: Reliability
    interval: float
    kept: float

    @property
    def seconds(self) -> float:
        return self.timeline.seconds

    @property
    def mfu(self) -> float:
        return self.proposal.mfu * self.proposal.seconds / self.seconds

    @property
    def days(self) -> float:
        """For all of the stage's steps, saves and failures included."""
        return self.proposal.config.train.steps * self.seconds / self.kept / DAY


def simulate_stage(options: Namespace) -> int:
    """Print the table, and draw the steps. Raises BadInput for a GPU that is not known and for numbers of GPUs that the
    topology cannot be on."""
    gpu = gpu_kind(options.gpu)
    for name in ("failures", "storage", "restart", "stall"):
        if getattr(options, name) <= 0:
            raise BadInput(f"--{name} {getattr(options, name):g}: has to be above 0")
    config = stage_on_gpus(options.settings)
    rows = vocabulary_rows(config)
    played = [play(on_gpus(config, gpus), gpus, gpu, rows, options) for gpus in options.gpus]
    if options.svg:
        Path(options.svg).write_text(svg([_drawn(one) for one in played]), encoding="utf-8")
    if options.json:
        print(json.dumps([_described(one) for one in played], indent=2))
    else:
        _print(config, gpu, played, options)
    return DONE


def on_gpus(config: Config, gpus: int) -> Config:
    """`config` on so many GPUs: the same model-parallel topology and global batch, other data-parallel copies, so that
    each has more or fewer micro-batches. Raises BadInput where that cannot be."""
    size = model_parallel_size(config)
    if gpus % size:
        raise BadInput(f"--gpus {gpus}: is no multiple of the {size} GPUs that share the model")
    moved = replace(config, parallel=replace(config.parallel, data=gpus // size))
    try:
        check(moved, gpus)
    except BadInput as refusal:
        raise BadInput(f"--gpus {gpus}: {refusal}") from refusal
    return moved


def play(config: Config, gpus: int, gpu: Gpu, rows: int, options: Namespace) -> Played:
    attached = with_audio_input(Attached(), config, learnt(config, rows).trains)
    proposal = propose(config, gpus, gpu, rows, attached)
    timeline = simulate(proposal.costs.schedule())
    write = of_stage(config, rows) / (options.storage * 1e9 * -(-gpus // gpu.node))
    stall = write * (options.stall if config.checkpoint.asynchronous else 1.0)
    job = Reliability.of(gpus, options.failures, stall=stall, write=write, restart=options.restart)
    interval = best_interval(job)
    return Played(proposal, timeline, job, interval, goodput(job, interval))


def _print(config: Config, gpu: Gpu, played: Sequence[Played], options: Namespace) -> None:
    print(table.header(config, played[-1].proposal.ranks, gpu.name).rpartition(" on ")[0])
    print(
        f"{table.topology(config, copies=False)}; the global batch stays, so more GPUs are more\n"
        "copies with fewer micro-batches each; predicted, not measured\n"
    )
    cells = [list(_COLUMNS), *map(_cells, played)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(_COLUMNS))]
    for row in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    first = played[0].reliability
    print(
        f"\n{options.failures:g} failures in 1,000 GPU-days; {options.restart:g} s until a failed job trains again; "
        f"{options.storage:g} GB/s of storage a node: a save takes {first.write:.0f} s on {played[0].proposal.ranks:,} "
        f"GPUs and keeps training from {first.stall:.1f} s"
    )


def _cells(one: Played) -> list[str]:
    proposal, costs = one.proposal, one.timeline.costs
    return [
        f"{proposal.ranks:,}",
        f"{proposal.config.parallel.data:,}",
        f"{costs.microbatches:,}",
        f"{one.seconds:.2f}",
        f"{one.timeline.bubble:.1%}",
        f"{one.timeline.idle:.1%}",
        f"{one.mfu:.1%}",
        f"{one.interval / 60:.0f} min",
        f"{one.kept:.1%}",
        f"{one.days:.1f}",
        f"{one.days * 24 * proposal.ranks:,.0f}",
    ]


def _drawn(one: Played) -> Drawn:
    """The whole step where it is short, else its beginning: a few times what the pipeline takes to fill."""
    proposal, timeline = one.proposal, one.timeline
    few = 4 * timeline.costs.ranks
    shown = None if timeline.costs.microbatches <= few else timeline.pipeline * few / timeline.costs.microbatches
    title = (
        f"{proposal.config.backbone.name} on {proposal.ranks:,} {proposal.gpu.name}: step {one.seconds:.2f} s, bubble "
        f"{timeline.bubble:.1%}, MFU {one.mfu:.1%}, {timeline.costs.microbatches} micro-batches"
    )
    return Drawn(title, timeline, shown)


def _described(one: Played) -> dict[str, object]:
    timeline, job = one.timeline, one.reliability
    return {
        "gpus": one.proposal.ranks,
        "data": one.proposal.config.parallel.data,
        "microbatches": timeline.costs.microbatches,
        "seconds": one.seconds,
        "ideal": timeline.ideal,
        "imbalance": timeline.imbalance,
        "waiting": timeline.waiting,
        "tail": timeline.costs.tail,
        "bubble": timeline.bubble,
        "idle": timeline.idle,
        "mfu": one.mfu,
        "between_failures": job.between,
        "save": job.write,
        "stall": job.stall,
        "interval": one.interval,
        "goodput": one.kept,
        "days": one.days,
    }
