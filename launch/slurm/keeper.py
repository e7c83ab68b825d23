"""Stands by on the last node of a job whose batch script may be lost with its node: `python -m launch.slurm.keeper
<run folder> --began SECONDS`.

A job that may go on with fewer nodes is submitted with --no-kill: Slurm takes a lost node out of it and ends its steps,
and the script decides what to do. Where the node was the script's own, nobody would, and the job would hold the others
until its time limit; then this process ends it as the script would have done.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import time
from pathlib import Path

from launch.slurm import record
from launch.slurm.ending import conclude, exit_codes, this_job
from launch.slurm.nodes import names_of
from launch.slurm.queue import fields, said
from runtime.exits import FAILED

_PAUSE = 15.0  # seconds between looks; Slurm takes longer to find that a node is gone


def main() -> None:
    """Wait; the batch script ends this process by SIGUSR1, and Slurm with the job. Ranks are stopped by SIGTERM, which
    reaches all steps."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parser = argparse.ArgumentParser(prog="python -m launch.slurm.keeper")
    parser.add_argument("run", type=Path)
    parser.add_argument("--began", type=float, required=True, help="when the script began, in seconds since 1970")
    options = parser.parse_args()
    script_on = names_of(os.environ["SLURM_JOB_NODELIST"])[0]
    while _has(script_on):
        time.sleep(_PAUSE)
    _write_to_log(options.run)  # what srun would have passed on is lost with it
    print(f"megaphone: {script_on}, where the batch script ran, is lost", flush=True)
    conclude(options.run, FAILED, this_job(options.run), "", options.began, exit_codes(options.run))
    # It was not queued again, or another job has taken its place.
    subprocess.run(["scancel", "--quiet", os.environ["SLURM_JOB_ID"]], check=False)


def _has(node: str) -> bool:
    """Whether a node still is one of this job's, as far as Slurm tells."""
    job = fields(said("scontrol", "--oneliner", "show", "job", os.environ["SLURM_JOB_ID"]))
    if job.get("JobState") != "RUNNING":
        return True
    names = names_of(job.get("NodeList", ""))
    return not names or node in names


def _write_to_log(run: Path) -> None:
    log = os.open(record.folder_of(run) / f"{os.environ['SLURM_JOB_ID']}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)


if __name__ == "__main__":
    main()
