"""What a batch script does when the look at its nodes did not end well: `python -m launch.slurm.looked <run folder>
--code N --asked NAME`. Sick nodes are left out, and the job is queued again, a bounded number of times."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.preflight import record as preflight
from launch.preflight.meeting import job_of
from launch.runfolder import load_run
from launch.slurm import record
from launch.slurm.ending import conclude, end, this_job
from launch.slurm.record import Attempt, Submitted
from runtime.exits import BAD_INPUT, DONE, FAILED, SICK, STOPPED_EARLY


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge, write down, queue again where that is worth it. Returns the job's exit code."""
    parser = argparse.ArgumentParser(prog="python -m launch.slurm.looked")
    parser.add_argument("run", type=Path)
    parser.add_argument("--code", type=int, required=True, help="srun's exit code")
    parser.add_argument("--asked", default="", help="the signal that the job was told to stop by")
    options = parser.parse_args(arguments)
    job = this_job(options.run)
    found = preflight.read(options.run)
    if options.asked:
        return conclude(options.run, STOPPED_EARLY, job, options.asked)
    if found is None or found["start"] != job_of(os.environ) or found["code"] == DONE:
        return conclude(options.run, FAILED, job, "")  # it came to no verdict: a node was lost, or a rank crashed
    if found["code"] == BAD_INPUT:
        return end(options.run, BAD_INPUT, "", again=False, reason=f"preflight: {found['reason']}")
    most = load_run(options.run).cluster.preflight.exclusions
    again, reason = decide(
        found, job, record.read_attempts(options.run), most=most, cancelled=record.is_cancelled(options.run)
    )
    without = found["sick"] if again else ()
    return end(options.run, SICK, "", again=again, reason=reason, without=without)


def decide(
    found: dict[str, Any], job: Submitted | None, attempts: Sequence[Attempt], *, most: int, cancelled: bool
) -> tuple[bool, str]:
    """Whether to queue the job again without the nodes that a preflight found sick, and why or why not, in one line.
    most: nodes that a job may be queued again without, over all its starts."""
    sick = found["sick"]
    said = f"preflight: {found['reason']}"
    if job is None:
        return False, said
    if cancelled:
        return False, f"{said}; cancelled"
    mine = [attempt for attempt in attempts if attempt.job == job.id]
    if sum(attempt.queued_again for attempt in mine) >= job.requeues:
        return False, f"{said}; queued again {job.requeues} times already (cluster.requeues)"
    before = sum(len(attempt.excluded) for attempt in mine)
    if before + len(sick) > most:
        beside = f", {before} were left out before" if before else ""
        return False, f"{said}; {len(sick)} more to leave out{beside}, {most} at most (cluster.preflight.exclusions)"
    return True, f"{said}; queued again without {', '.join(sick)}, {before + len(sick)} of {most} left out"


if __name__ == "__main__":
    sys.exit(main())
