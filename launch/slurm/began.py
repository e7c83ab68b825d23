"""What a batch script does as its ranks begin: `python -m launch.slurm.began <run folder>` tells the webhook."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from configs.schema import Event
from launch.notify import Notifier
from launch.runfolder import load_run


def main(run: Path) -> None:
    nodes, restart = os.environ.get("SLURM_JOB_NUM_NODES", "?"), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    job = int(os.environ["SLURM_JOB_ID"])
    with contextlib.closing(Notifier.of(load_run(run))) as notifier:
        text = f"job {job} began on {os.environ.get('SLURM_JOB_NODELIST', '?')}, {nodes} nodes, start {restart + 1}"
        notifier.tell(Event.started, text, job=job, start=restart + 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
