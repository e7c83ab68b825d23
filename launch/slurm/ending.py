"""What a batch script does when its step has ended: `python -m launch.slurm.ending <run folder> --code N --asked NAME`.

It finds out how the ranks ended, writes that down, and either queues the job again or ends it with the code by which
`afterok` lets the next job go or not.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launch.restarts import newest_checkpoint
from launch.slurm import record
from launch.slurm.nodes import exclude, lost
from launch.slurm.record import Attempt, Submitted
from runtime.exits import BAD_INPUT, DONE, EXIT_CODES, FAILED, HALTED, HUNG, STOPPED_EARLY

_SAID = {
    DONE: "done",
    FAILED: "a rank failed",
    BAD_INPUT: "its configuration or input was refused",
    HALTED: "the run halted: somebody has to decide",
    STOPPED_EARLY: "stopped early, its progress saved",
    HUNG: "a rank hung and the watchdog ended the run",
}
_REQUEUE_PATIENCE = 60.0  # seconds until Slurm kills a script that it has queued again


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge, write down, queue again where that is worth it. Returns the job's exit code."""
    parser = argparse.ArgumentParser(prog="python -m launch.slurm.ending")
    parser.add_argument("run", type=Path)
    parser.add_argument("--code", type=int, required=True, help="srun's exit code")
    parser.add_argument("--asked", default="", help="the signal that the job was told to stop by")
    options = parser.parse_args(arguments)
    submitted = this_job(options.run)
    folder = os.environ.get(EXIT_CODES)
    code = verdict(
        options.code, {} if folder is None else _codes(Path(folder)), 0 if submitted is None else submitted.ranks
    )
    return conclude(options.run, code, submitted, options.asked)


def this_job(run: Path) -> Submitted | None:
    """What the run folder knows of the job around this process."""
    job = int(os.environ["SLURM_JOB_ID"])
    return next((one for one in record.read_jobs(run) if one.id == job), None)


def conclude(run: Path, code: int, submitted: Submitted | None, asked: str) -> int:
    """Write down how this start ended, queue the job again where that is worth it; returns the job's exit code."""
    nodes = os.environ.get("SLURM_JOB_NODELIST", "")
    again, reason = decide(
        code,
        submitted,
        record.read_attempts(run),
        checkpoint=newest_checkpoint(run),
        cancelled=record.is_cancelled(run),
        lost=lost(nodes) if code in (FAILED, HUNG) else [],
    )
    return end(run, code, asked, again=again, reason=reason)


def end(run: Path, code: int, asked: str, *, again: bool, reason: str, without: Sequence[str] = ()) -> int:
    """Write down how this start ended, and queue the job again, on other nodes than those of `without`."""
    job = int(os.environ["SLURM_JOB_ID"])
    attempt = Attempt(
        job=job,
        restart=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        nodes=os.environ.get("SLURM_JOB_NODELIST", ""),
        code=code,
        asked=asked,
        checkpoint=newest_checkpoint(run),
        queued_again=again,
        reason=reason,
        excluded=tuple(without),
    )
    record.add_attempt(run, attempt)
    print(f"megaphone: job {job}: {reason}", flush=True)
    if again:
        subprocess.run(["scontrol", "requeue", str(job)], check=True)
        if without:
            exclude(job, without)
        time.sleep(_REQUEUE_PATIENCE)  # Slurm ends this script; ending by itself would end the job
    return code


def verdict(step: int, codes: dict[int, int], ranks: int) -> int:
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
) -> tuple[bool, str]:
    """Whether to queue the job again, and why or why not, in one line. `lost`: nodes of the job that do not answer."""
    said = _SAID[code]
    if code not in (STOPPED_EARLY, FAILED, HUNG) or job is None:
        return False, said
    if cancelled:
        return False, f"{said}; cancelled"
    mine = [attempt for attempt in attempts if attempt.job == job.id]
    again = sum(attempt.queued_again for attempt in mine)
    if again >= job.requeues:
        return False, f"{said}; queued again {again} times already (cluster.requeues)"
    if code == STOPPED_EARLY:
        return True, f"{said}; queued again"
    if lost:
        return True, f"{said}, and {', '.join(lost)} no longer answers; queued again"
    fruitless = 0
    for attempt in reversed(mine):
        if attempt.code not in (FAILED, HUNG) or attempt.checkpoint != checkpoint:
            break
        fruitless += 1
    if fruitless >= job.restarts:
        return False, f"{said}; {fruitless + 1} in a row without a new checkpoint (resilience.restarts)"
    return True, f"{said}; queued again, {fruitless + 1} of {job.restarts} without a new checkpoint"


def _codes(folder: Path) -> dict[int, int]:
    """Exit codes by rank."""
    return {int(file.name.removeprefix("rank-")): int(file.read_text()) for file in folder.glob("rank-*")}


if __name__ == "__main__":
    sys.exit(main())
