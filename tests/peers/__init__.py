"""Other libraries that read speech shards. Each runs in a process of its own, with the packages of `.venv/peers`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(sys.prefix) / "peers"
_REPOSITORY = Path(__file__).resolve().parents[2]


def run(module: str, *arguments: str, timeout: float = 300) -> str:
    """What `python -m <module>` prints, run beside the project with the peers' packages. Raises RuntimeError with its
    last words where it fails."""
    if not FOLDER.is_dir():
        raise RuntimeError(f"{FOLDER} is not there: make install")
    environment = os.environ | {"PYTHONPATH": f"{_REPOSITORY}{os.pathsep}{FOLDER}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        raise RuntimeError(f"{module}: {done.stderr.strip()[-1500:]}")
    return done.stdout


def prepare_energon(corpus: Path) -> None:
    """Give a corpus of ours the metadata that megatron-energon wants beside its shards."""
    parts = ["--split-parts", "train:train/.*", "--split-parts", "val:valid/.*"]
    run(
        "megatron.energon.cli.main",
        *["prepare", "--non-interactive", "--no-progress", *parts, "--sample-type", "CrudeWebdataset", str(corpus)],
    )
