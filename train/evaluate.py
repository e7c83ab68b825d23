"""One rank that measures a run's newest checkpoint: `python -m train.evaluate <resolved config.yaml>`."""

from __future__ import annotations

import sys

from configs.schema import Config
from runtime.exits import leave
from runtime.log_lines import stamp_output
from runtime.signals import StopFlag
from train.stage import run_rank


def main(arguments: list[str]) -> int:
    """Print the validation losses of the newest usable checkpoint. Returns the exit code."""
    return run_rank(arguments, _evaluate)


def _evaluate(config: Config, stop: StopFlag) -> None:
    from train.loop import evaluate

    evaluate(config, stop)


if __name__ == "__main__":
    stamp_output()
    leave(main(sys.argv[1:]))
