"""A stage that averages the weights of earlier ones: `python -m train.merge <resolved config.yaml>`.

Rank 0 does it, slice by slice from disk to disk; others have nothing to do. What it leaves is a checkpoint like any
other stage's, so later stages start from it and tools read it. A checkpoint appears whole or not at all: a stage that
was killed begins it again, and comes to the same bytes.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from checkpoints.atomic import remove, write_file
from checkpoints.layout import complete_checkpoints, step_folder
from checkpoints.manifest import problems, read_manifest
from checkpoints.tools.average import average
from configs.schema import Config
from runtime.exits import BadInput, leave
from runtime.log_lines import stamp_output
from runtime.run_files import RESULTS_FILE
from runtime.signals import StopFlag
from train.stage import run_rank


def main(arguments: list[str]) -> int:
    """Average as the config file in `arguments` says. Returns the exit code."""
    return run_rank(arguments, _merge)


def _merge(config: Config, stop: StopFlag) -> None:
    if os.environ.get("RANK", "0") != "0":
        return
    folder, weights = Path(config.run.folder), config.merge.weights
    sources = [newest(folder.parent / stage / "checkpoints", stage) for stage in weights]
    last = read_manifest(sources[-1])
    out = step_folder(folder / "checkpoints", last.step)
    if problems(out):
        if out.exists():
            remove(out)
        told = ", ".join(f"{weight:g} x {source}" for source, weight in zip(sources, weights.values(), strict=True))
        print(f"megaphone: averaging {told}", flush=True)
        average(sources, list(weights.values()), out)
    origin = read_manifest(out).origin
    results = {"status": "finished", "step": last.step, "checkpoint": str(out), "averaged": origin["averaged"]}
    write_file(folder / RESULTS_FILE, json.dumps(results, indent=2) + "\n")


def newest(checkpoints: Path, stage: str) -> Path:
    """A stage's newest checkpoint, of those in its folder. Raises BadInput where there is none."""
    found = complete_checkpoints(checkpoints)
    if not found:
        raise BadInput(f"merge.weights.{stage}: no checkpoint in {checkpoints}; run that stage first")
    return found[-1]


if __name__ == "__main__":
    stamp_output()
    leave(main(sys.argv[1:]))
