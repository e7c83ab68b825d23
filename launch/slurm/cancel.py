"""`megaphone cancel`: a run's jobs leave the queue, and those that run save before they go."""

from __future__ import annotations

import subprocess
from pathlib import Path

from launch.slurm import record
from launch.slurm.queue import ENDED, states
from runtime.exits import BadInput


def cancel(run: Path) -> list[int]:
    """Cancel the jobs of a run folder that have not ended; returns their numbers.

    A running one gets the warning that comes before a time limit: it saves, stops, and is not queued again.
    """
    now = states([job.id for job in record.read_jobs(run)])
    there = [number for number, state in now.items() if state.name not in ENDED]
    if not there:
        return []
    record.mark_cancelled(run)
    waiting = [number for number in there if now[number].name != "RUNNING"]
    for number in there:
        if number not in waiting:
            subprocess.run(["scancel", "--state=PENDING", str(number)], capture_output=True)  # tasks of an array
        told = ["--batch", "--signal=USR1"] if number not in waiting else []
        said = subprocess.run(["scancel", *told, str(number)], capture_output=True, text=True)
        if said.returncode:
            raise BadInput(f"scancel {number}: {' '.join(said.stderr.split())}")
    return there
