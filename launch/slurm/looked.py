"""What a batch script does when the look at its nodes did not end well: `python -m launch.slurm.looked <run folder>
--code N --asked NAME --began SECONDS`. Sick nodes are left out, a bounded number, and the job is queued again."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from launch.preflight import record as preflight
from launch.preflight.meeting import job_of
from launch.runfolder import load_run
from launch.slurm import record
from launch.slurm.ending import Ended, conclude, end, this_job, told
from launch.slurm.record import Attempt, Submitted
from launch.slurm.requeue import may_leave_out
from runtime.exits import BAD_INPUT, DONE, FAILED, SICK, STOPPED_EARLY


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge, write down, queue again where that is worth it. Returns the job's exit code."""
    options = told("launch.slurm.looked", arguments)
    run, job = options.run, this_job(options.run)
    found = preflight.read(run)
    if options.asked:
        return conclude(run, STOPPED_EARLY, job, options.asked, options.began, {})
    if found is None or found["start"] != job_of(os.environ) or found["code"] == DONE:
        # It came to no verdict: a node was lost, or a rank crashed.
        return conclude(run, FAILED, job, "", options.began, {})
    if found["code"] == BAD_INPUT:
        return end(run, job, Ended(BAD_INPUT, "", False, f"preflight: {found['reason']}"))
    before = [] if job is None else record.read_left_out(run, job)
    again, reason = decide(
        found,
        job,
        record.read_attempts(run),
        before=len(before),
        most=load_run(run).cluster.preflight.exclusions,
        cancelled=record.is_cancelled(run),
    )
    return end(run, job, Ended(SICK, "", again, reason, _whys(found) if again else {}))


def decide(
    found: dict[str, Any],
    job: Submitted | None,
    attempts: Sequence[Attempt],
    *,
    before: int,
    most: int,
    cancelled: bool,
) -> tuple[bool, str]:
    """Whether to queue the job again without the nodes that a preflight found sick, and why or why not, in one line.
    before: nodes that it is kept from already; most: that it may be."""
    sick = found["sick"]
    said = f"preflight: {found['reason']}"
    if job is None:
        return False, said
    if cancelled:
        return False, f"{said}; cancelled"
    mine = [attempt for attempt in attempts if attempt.job in job.ids]
    if sum(attempt.queued_again for attempt in mine) >= job.requeues:
        return False, f"{said}; queued again {job.requeues} times already (cluster.requeues)"
    may, beside = may_leave_out(before, len(sick), most)
    return may, f"{said}; " + (f"queued again without {', '.join(sick)}, {beside}" if may else beside)


def _whys(found: dict[str, Any]) -> dict[str, str]:
    """What a preflight found about each sick node."""
    said = {node: [one["said"] for one in found["findings"] if node in one["nodes"]] for node in found["sick"]}
    return {node: f"preflight: {'; '.join(lines)}" for node, lines in said.items()}


if __name__ == "__main__":
    sys.exit(main())
