"""A job goes back into the queue: kept from nodes that were named, on as many as there are; and its chain with it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.schema import Config
from launch.runfolder import load_run
from launch.slurm import record
from launch.slurm.nodes import PATIENCE, change
from launch.slurm.record import LeftOut, Submitted
from launch.slurm.sizes import placed, sizes, tasks_per_node
from runtime.exits import BadInput


@dataclass(frozen=True)
class Size:
    """The nodes that a job is to have, of those that it was submitted for; None: as it is. said: why, in one line."""

    nodes: int | None = None
    said: str = ""


def may_leave_out(before: int, more: int, most: int) -> tuple[bool, str]:
    """Whether a job that is kept from `before` nodes may be kept from `more`, where `most` are allowed, over preflights
    and failures alike; and a phrase that says so."""
    if before + more <= most:
        return True, f"{before + more} of {most} left out"
    beside = f", {before} were left out before" if before else ""
    return False, f"{more} more to leave out{beside}, {most} at most (cluster.preflight.exclusions)"


def size_of(run: Path, config: Config, job: int, beside: Sequence[str] = ()) -> Size:
    """The size that a stage's job should be queued with, which is kept from `beside` too. It changes only where
    `cluster.fewest_nodes` allows it."""
    counts, nodes = sizes(config), config.cluster.nodes
    if len(counts) == 1:
        return Size()
    there = placed(_script(run), config, _without(run, job, beside))
    if there is None:
        return Size(nodes, f"there are not even {counts[-1]} nodes, so it waits for {nodes}")
    return Size(there, "" if there == nodes else f"on {there} of {nodes} nodes, for there are no more")


def has_spare(run: Path, config: Config, job: int, beside: Sequence[str]) -> bool:
    """Whether there are nodes enough for the job without those of `beside`."""
    return placed(_script(run), config, _without(run, job, beside)) is not None


def put_back(job: Submitted, name: str, run: Path, without: Mapping[str, str], size: Size) -> None:
    """Queue the running job again, or the task of it that Slurm calls `name`. without: the nodes to keep it from, and
    why."""
    config = load_run(run)
    subprocess.run(["scontrol", "requeue", name], check=True)
    _leave_out(run, job.id, without, by=job.id)
    _change(job.id, config, list(without), size, PATIENCE)


def pass_on(job: Submitted, without: Mapping[str, str], gone: Sequence[str] = ()) -> None:
    """Keep the later jobs of the chain from these nodes too, and let them have as many as there are; gone: nodes that
    Slurm may not know to be down yet."""
    for folder, number in job.later.items():
        run = Path(folder)
        try:
            config = load_run(run)
            _leave_out(run, number, without, by=job.id)
            size = size_of(run, config, number, gone)
            _change(number, config, list(without), size)
        except (BadInput, OSError, RuntimeError) as error:  # it may have been cancelled; this job's end goes on
            print(f"megaphone: job {number} stays as it is: {error}", flush=True)


def _change(job: int, config: Config, without: Sequence[str], size: Size, patience: float = 0.0) -> None:
    told = None if size.nodes is None else (size.nodes, size.nodes * tasks_per_node(config.cluster))
    if without or told:
        change(job, without, told, patience)


def _leave_out(run: Path, job: int, without: Mapping[str, str], by: int) -> None:
    for node, why in without.items():
        record.add_left_out(run, LeftOut(job, node, why, by))


def _without(run: Path, job: int, beside: Sequence[str]) -> list[str]:
    return [*(one.node for one in record.read_left_out(run, job)), *beside]


def _script(run: Path) -> Path:
    return record.folder_of(run) / "train.sbatch"
