"""The real launcher of the campaign's run: `python -m tests.faults.launcher <config.yaml>`."""

from __future__ import annotations

import sys
from pathlib import Path

from configs.compose import load_config
from launch.restarts import newest_checkpoint, run_again

RANKS = 2


def main(config_file: str) -> int:
    config = load_config(Path(config_file))
    folder = Path(config.run.folder)
    return run_again(
        [sys.executable, "-W", "ignore", "-m", "tests.faults.rank", config_file],
        ranks=RANKS,
        logs=folder / "logs",
        restarts=config.resilience.restarts,
        pause=config.resilience.restart_pause,
        progress=lambda: newest_checkpoint(folder),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
