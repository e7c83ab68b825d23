"""Prints what a start costs: `megaphone --help`, what is imported before any work, and the way of the quickstart's tiny
scale (two tensor-parallel ranks) from the command to its first step, phase by phase as the run itself records it.

CPU seconds are of the process and its children, least of several tries in turns; beside them what an interpreter that
does nothing, and one that imports torch, cost in the same tries.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TRIES = 5
STARTS = 3
COMMAND = "import sys; from launch.cli import main; sys.exit(main())"
# What `train.stage` imports before it opens anything.
RANK = "from configs.schema import Config; from train.stage import _import; _import(Config())"
IMPORTS = {
    "python -c pass": ("pass",),
    "python -c 'import torch'": ("import torch",),
    "megaphone --help": (COMMAND, "--help"),
    "megaphone train --cfg": (COMMAND, "train", "--cfg", "recipe=quickstart", "scale=tiny"),
    "a rank's imports": (f"{RANK}; import os; os._exit(0)",),
}
# The recipe's own model and steps, on half a minute of speech.
SMALL = (
    "corpus.speech_minutes=0.6",
    "corpus.shard_minutes=0.18",
    "corpus.text_characters=40000",
    "corpus.validation_share=0.2",
    "codec.codebooks.linguistic.size=32",
    "codec.codebooks.semantic.size=64",
    "train.steps=12",
    "train.validate_every=0",
    "checkpoint.every=0",
    "tracker.wandb=disabled",
)


def measured(words: tuple[str, ...], folder: Path) -> tuple[float, float]:
    """CPU and wall seconds of a fresh interpreter that runs `words`, a program and its arguments."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", *words],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "CUDA_VISIBLE_DEVICES": "",
            "MEGAPHONE_CACHE": "cache",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
    )
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if ended.returncode:
        raise SystemExit(f"{words}: exit code {ended.returncode}\n{ended.stdout}{ended.stderr}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def imports(folder: Path) -> None:
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in IMPORTS}
    for _ in range(TRIES):
        for name, words in IMPORTS.items():
            found[name].append(measured(words, folder))
    for name, tries in found.items():
        cpu, wall = (min(column) for column in zip(*tries, strict=True))
        print(f"{name}: {cpu:.2f} CPU s, {wall:.2f} s")


def starts(folder: Path) -> None:
    words = ("recipe=quickstart", "scale=tiny", *SMALL)
    measured((COMMAND, "data", "build", *words), folder)
    records = []
    for number in range(STARTS):
        cpu, _ = measured((COMMAND, "train", *words, f"run.folder=run-{number}"), folder)
        records.append((json.loads((folder / f"run-{number}/starts.jsonl").read_text()), cpu))
    for record, cpu in records:
        print(f"first step {record['seconds']:.2f} s after the command; 12 steps and all processes {cpu:.1f} CPU s")
    fastest = min(records, key=lambda record: record[0]["seconds"])[0]
    for phase, seconds in fastest["phases"].items():
        print(f"  {phase}: {seconds:.2f} s")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        imports(Path(temporary))
        starts(Path(temporary))
