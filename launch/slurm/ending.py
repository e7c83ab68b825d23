"""What a batch script does when its step has ended: `python -m launch.slurm.ending <run folder> --code N --asked NAME
--began SECONDS`.

It finds out how the ranks ended and, where they failed, who is to blame; writes that down and tells it; and either
queues the job again or ends it with the code by which `afterok` lets the next job go or not.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from configs.schema import Config, Event
from launch.notify import Notifier
from launch.recovery import failures
from launch.recovery.blame import Blame
from launch.recovery.look import look
from launch.recovery.telling import SAID, tell_end, tell_failure
from launch.restarts import newest_checkpoint
from launch.runfolder import load_run
from launch.slurm import record
from launch.slurm.jobs import TRAIN
from launch.slurm.nodes import lost, names_of
from launch.slurm.record import Attempt, Submitted
from launch.slurm.requeue import Size, has_spare, may_leave_out, pass_on, put_back, size_of
from runtime.exits import BAD_INPUT, DONE, FAILED, HALTED, HUNG, STOPPED_EARLY

_SAID = SAID | {DONE: "done", FAILED: "a rank failed", HUNG: "a rank hung and the watchdog ended the run"}
_REQUEUE_PATIENCE = 60.0  # seconds until Slurm kills a script that it has queued again


@dataclass(frozen=True)
class Leaving:
    """The nodes that a job is to be kept from, with the reasons, and a phrase about that, also where it is refused."""

    why: Mapping[str, str] = field(default_factory=dict)
    said: str = ""


@dataclass(frozen=True)
class Ended:
    """How a start ended, and what was decided. without: nodes that the job is kept from from now on, and why; gone:
    those that no longer answer; found: who is to blame."""

    code: int
    asked: str
    again: bool
    reason: str
    without: Mapping[str, str] = field(default_factory=dict)
    gone: Sequence[str] = ()
    found: Blame | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge, write down, queue again where that is worth it. Returns the job's exit code."""
    options = told("launch.slurm.ending", arguments)
    submitted = this_job(options.run)
    codes = exit_codes(options.run)
    code = verdict(options.code, codes, 0 if submitted is None else _ranks_here(submitted))
    return conclude(options.run, code, submitted, options.asked, options.began, codes)


def told(program: str, arguments: Sequence[str] | None) -> Namespace:
    """What the batch script tells of how a step has ended."""
    parser = argparse.ArgumentParser(prog=f"python -m {program}")
    parser.add_argument("run", type=Path)
    parser.add_argument("--code", type=int, required=True, help="srun's exit code")
    parser.add_argument("--asked", default="", help="the signal that the job was told to stop by")
    parser.add_argument("--began", type=float, default=0.0, help="when the script began, in seconds since 1970")
    return parser.parse_args(arguments)


def this_job(run: Path) -> Submitted | None:
    """What the run folder knows of the job around this process."""
    return next((one for one in record.read_jobs(run) if one.id == job_number()), None)


def job_number() -> int:
    """The number of the job around this process; of a task that of its array."""
    return int(os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ["SLURM_JOB_ID"])


def task_number() -> int | None:
    """Which task of an array this is."""
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    return None if task is None else int(task)


def conclude(run: Path, code: int, job: Submitted | None, asked: str, began: float, ends: Mapping[int, int]) -> int:
    """Judge a start that ended with `code`, and `end` it; returns the job's exit code. began: of the script, in seconds
    since 1970; ends: exit codes of the ranks that left one."""
    nodes = os.environ.get("SLURM_JOB_NODELIST", "")
    failed = code in (FAILED, HUNG)
    gone = lost(int(os.environ["SLURM_JOB_ID"]), names_of(nodes)) if failed else []
    found = look(run, began, ends, _ranks_here(job), lost=gone) if failed and job is not None and job.ranks else None
    leaving = Leaving() if job is None else _leaving(run, job, found, names_of(nodes))
    again, reason = decide(
        code,
        job,
        [attempt for attempt in record.read_attempts(run) if attempt.task == task_number()],
        checkpoint=newest_checkpoint(run),
        cancelled=record.is_cancelled(run),
        lost=gone,
        leaving=leaving,
    )
    return end(run, job, Ended(code, asked, again, reason, leaving.why if again else {}, gone, found))


def end(run: Path, job: Submitted | None, ended: Ended) -> int:
    """Write down and tell how this start ended, and queue the job again where that was decided, the later ones of its
    chain as well off; returns the job's exit code."""
    config, reason, size = load_run(run), ended.reason, Size()
    trains = job is not None and job.kind == TRAIN
    if job is not None and trains and ended.again:
        size = size_of(run, config, job, [*ended.without, *ended.gone])
        reason += f"; {size.said}" if size.said else ""
    attempt = Attempt(
        job=job_number(),
        restart=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        nodes=os.environ.get("SLURM_JOB_NODELIST", ""),
        code=ended.code,
        asked=ended.asked,
        checkpoint=newest_checkpoint(run),
        queued_again=ended.again,
        reason=reason,
        task=task_number(),
        excluded=tuple(ended.without),
    )
    record.add_attempt(run, attempt)
    print(f"megaphone: job {attempt.name}: {reason}", flush=True)
    blamed = None
    if trains and ended.code in (FAILED, HUNG):
        blamed = failures.failure(ended.found, f"{attempt.job}-{attempt.restart}", ended.code, reason)
        failures.add(run, blamed)
        print(f"megaphone: {blamed.line}", flush=True)
    _tell(config, attempt, None if job is None or trains else job.kind, blamed)
    if job is not None and trains and (ended.again or ended.code == DONE):
        pass_on(job, ended.without, ended.gone)
    if job is not None and ended.again and put_back(job, attempt.name, run, ended.without, size):
        time.sleep(_REQUEUE_PATIENCE)  # Slurm ends this script; ending by itself would end the job
    return ended.code


def verdict(step: int, codes: Mapping[int, int], ranks: int) -> int:
    """The code of the whole, of srun's and of those that ranks have left.

    Ranks that stop early tell srun 0. One that left nothing was killed, or never began.
    """
    found = set(codes.values())
    for decisive in (HALTED, BAD_INPUT, HUNG):
        if decisive in found:
            return decisive
    whole = len(codes) == ranks
    if ranks and whole and found <= {DONE, STOPPED_EARLY}:
        return STOPPED_EARLY if STOPPED_EARLY in found else DONE
    if not ranks:
        return step if step in _SAID else FAILED
    # Killed while it waited at a rendezvous that others, stopping early, had called off.
    return STOPPED_EARLY if STOPPED_EARLY in found and found <= {DONE, STOPPED_EARLY} else FAILED


def decide(
    code: int,
    job: Submitted | None,
    attempts: Sequence[Attempt],
    *,
    checkpoint: str | None,
    cancelled: bool,
    lost: Sequence[str],
    leaving: Leaving = Leaving(),
) -> tuple[bool, str]:
    """Whether to queue the job again, and why or why not, in one line. `lost`: nodes of the job that do not answer."""
    said = _SAID[code]
    if code not in (STOPPED_EARLY, FAILED, HUNG) or job is None:
        return False, said
    if cancelled:
        return False, f"{said}; cancelled"
    mine = [attempt for attempt in attempts if attempt.job in job.ids]
    again = sum(attempt.queued_again for attempt in mine)
    if again >= job.requeues:
        return False, f"{said}; queued again {again} times already (cluster.requeues)"
    if code == STOPPED_EARLY:
        return True, f"{said}; queued again"
    if lost:
        return True, f"{said}, and {', '.join(lost)} no longer answers; queued again"
    if leaving.why:
        return True, f"{said}; queued again without {', '.join(leaving.why)}, {leaving.said}"
    said += f"; {leaving.said}" if leaving.said else ""
    fruitless = 0
    for attempt in reversed(mine):
        if attempt.code not in (FAILED, HUNG) or attempt.checkpoint != checkpoint:
            break
        fruitless += 1
    if fruitless >= job.restarts:
        return False, f"{said}; {fruitless + 1} in a row without a new checkpoint (resilience.restarts)"
    return True, f"{said}; queued again, {fruitless + 1} of {job.restarts} without a new checkpoint"


def _leaving(run: Path, job: Submitted, found: Blame | None, nodes: Sequence[str]) -> Leaving:
    """The node whose hardware is to blame, where it may be left out and another one can take its place."""
    if found is None or not found.broken or found.node is None or found.node not in nodes:
        return Leaving()
    config, before = load_run(run), len(record.read_left_out(run, job))
    may, said = may_leave_out(before, 1, config.cluster.preflight.exclusions)
    if not may:
        return Leaving(said=f"{found.node} stays: {said}")
    if not has_spare(run, config, job, [found.node]):
        return Leaving(said=f"{found.node} stays: Slurm finds none to take its place")
    return Leaving({found.node: str(found)}, said)


def _tell(config: Config, attempt: Attempt, kind: str | None, blamed: failures.Failure | None) -> None:
    """Tell a stage's end, or that another of its jobs failed, whose kind is given."""
    with contextlib.closing(Notifier.of(config)) as notifier:
        if blamed is not None:
            tell_failure(notifier, blamed, again=attempt.queued_again)
            return
        well = attempt.code in (DONE, STOPPED_EARLY)
        if kind is None or not well:
            text = attempt.reason if kind is None else f"{kind} job: {attempt.reason}"
            tell_end(notifier, attempt.code, text, attempt.checkpoint)
        if attempt.queued_again and not well:
            notifier.tell(Event.restarted, attempt.reason)


def _ranks_here(job: Submitted) -> int:
    """Ranks on the nodes that the job has now, which may be fewer than were asked for."""
    return job.ranks // job.nodes * int(os.environ.get("SLURM_JOB_NUM_NODES", job.nodes))


def exit_codes(run: Path) -> dict[int, int]:
    """The exit codes that ranks of this start have left, by rank."""
    start = f"{os.environ['SLURM_JOB_ID']}-{os.environ.get('SLURM_RESTART_COUNT', '0')}"
    found = (record.folder_of(run) / "exits" / start).glob("rank-*")
    return {int(file.name.removeprefix("rank-")): int(file.read_text()) for file in found}


if __name__ == "__main__":
    sys.exit(main())
