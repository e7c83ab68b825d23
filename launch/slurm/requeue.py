"""A job goes back into the queue: kept from nodes that were named, on as many as there are; and its chain with it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from configs.schema import Config
from launch.runfolder import load_run
from launch.slurm import record
from launch.slurm.jobs import TRAIN
from launch.slurm.nodes import PATIENCE, exclude
from launch.slurm.queue import nodes_asked_for, said, waiting
from launch.slurm.record import LeftOut, Submitted
from launch.slurm.sizes import placed, placing, sizes
from launch.slurm.submit import sbatch
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


def size_of(run: Path, config: Config, job: Submitted, beside: Sequence[str] = ()) -> Size:
    """The size that a stage's job should be queued with, which is kept from `beside` too. It changes only where
    `cluster.fewest_nodes` allows it."""
    counts, nodes = sizes(config), config.cluster.nodes
    if len(counts) == 1:
        return Size()
    there = placed(_script(run), config, [*_left_out(run, job), *beside])
    if there is None:
        return Size(nodes, f"there are not even {counts[-1]} nodes, so it waits for {nodes}")
    return Size(there, "" if there == nodes else f"on {there} of {nodes} nodes, for there are no more")


def has_spare(run: Path, config: Config, job: Submitted, beside: Sequence[str]) -> bool:
    """Whether there are nodes enough for the job without those of `beside`."""
    return placed(_script(run), config, [*_left_out(run, job), *beside]) is not None


def put_back(job: Submitted, name: str, run: Path, without: Mapping[str, str], size: Size) -> bool:
    """Queue the running job again, or the task of it that Slurm calls `name`. without: the nodes to keep it from, and
    why. Returns whether Slurm ends this start itself; it does not where a job of another size takes its place."""
    keep_from(run, job, without, by=job.id)
    if size.nodes is not None and size.nodes != int(os.environ["SLURM_JOB_NUM_NODES"]):
        try:
            _submit_again(job, run, size.nodes, f"afterany:{job.id}")
        except BadInput as error:
            print(f"megaphone: job {name} keeps its size: {error}", flush=True)
        else:
            return False
    subprocess.run(["scontrol", "requeue", name], check=True)
    if without:
        exclude(job.id, list(without), PATIENCE)
    return True


def _submit_again(job: Submitted, run: Path, nodes: int, after: str) -> None:
    """A new job of another size in a job's place, which waits for what `after` says. Slurm takes no change of a job out
    of which it has taken a node before all its processes have ended, and counts cores that nobody asked for."""
    told = placing(load_run(run).cluster, nodes, _left_out(run, job))
    number = sbatch(_script(run), f"--dependency={after}", "--kill-on-invalid-dep=yes", *told)
    for other, condition in waiting().items():
        if f"afterok:{job.id}" in condition:
            said("scontrol", "update", f"JobId={other}", f"Dependency=afterok:{number}")
    record.replace_job(run, job, replace(job, id=number, before=job.ids))
    print(f"megaphone: job {number} takes the place of job {job.id}", flush=True)


def pass_on(job: Submitted, without: Mapping[str, str], gone: Sequence[str] = ()) -> None:
    """Keep the later jobs of the chain from these nodes too, and let them have as many as there are; gone: nodes that
    Slurm may not know to be down yet."""
    for run in map(Path, job.later):
        for later in record.read_jobs(run):
            try:
                if later.kind == TRAIN:
                    _pass_on(later, run, without, gone, by=job.id)
            except (BadInput, OSError, RuntimeError) as error:  # it may have been cancelled; this job's end goes on
                print(f"megaphone: job {later.id} stays as it is: {error}", flush=True)


def _pass_on(later: Submitted, run: Path, without: Mapping[str, str], gone: Sequence[str], by: int) -> None:
    waits = waiting().get(later.id)
    if waits is None:
        return
    keep_from(run, later, without, by)
    nodes = size_of(run, load_run(run), later, gone).nodes
    if nodes is not None and nodes != nodes_asked_for(later.id):
        _submit_again(later, run, nodes, ",".join(waits))
        subprocess.run(["scancel", "--quiet", str(later.id)], check=False)
    elif without:
        exclude(later.id, list(without))


def keep_from(run: Path, job: Submitted, without: Mapping[str, str], by: int) -> None:
    """Write down that a job is kept from these nodes, and why."""
    for node, why in without.items():
        record.add_left_out(run, LeftOut(job.id, node, why, by))


def _left_out(run: Path, job: Submitted) -> list[str]:
    return [one.node for one in record.read_left_out(run, job)]


def _script(run: Path) -> Path:
    return record.folder_of(run) / "train.sbatch"
