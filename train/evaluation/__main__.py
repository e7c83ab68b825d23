"""Measure a model: `python -m train.evaluation <resolved config.yaml>`. Rank 0 does it alone.

Writes evaluation.json, evaluation.html and results.json into the run folder. The same command goes on after any
interruption.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from configs.schema import Config
from runtime.exits import leave
from runtime.log_lines import stamp_output
from runtime.signals import StopFlag
from train.stage import run_rank


def main(arguments: list[str]) -> int:
    """Returns the exit code (see runtime.exits)."""
    return run_rank(arguments, _evaluate, start=_start)


def _start(file: Path) -> Config:
    from configs.compose import load_config

    return load_config(file)


def _evaluate(config: Config, stop: StopFlag) -> None:
    if os.environ.get("RANK", "0") != "0":
        return
    from train.evaluation.page import write_page
    from train.evaluation.run import evaluate
    from train.evaluation.subject import subject_of

    evaluate(config, subject_of(config), stop, _say)
    _say(f"written: {write_page(Path(config.run.folder))}")


def _say(line: str) -> None:
    print(f"megaphone: {line}", flush=True)


if __name__ == "__main__":
    stamp_output()
    leave(main(sys.argv[1:]))
