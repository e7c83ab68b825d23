"""A run that fails is started again, a bounded number of times; it goes on from its newest checkpoint by itself."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from checkpoints.layout import complete_checkpoints
from launch.local import run_ranks
from runtime import startup
from runtime.exits import FAILED, HUNG, STOPPED_EARLY
from runtime.signals import stoppable

LONGEST_PAUSE = 300.0  # seconds


def run_again(
    command: Sequence[str],
    *,
    ranks: int,
    logs: Path,
    restarts: int,
    pause: float,
    progress: Callable[[], object],
    asked: list[int] | None = None,
) -> int:
    """`local.run_ranks`, and again after a crash or a hang; returns the last exit code.

    Bad input, a halted run and a stop on request are no reason to start again. After `restarts` failures in a row
    between which `progress` told nothing new, it is given up. `pause`: seconds before the first start again, doubled
    each time. `asked` takes the stop signals that come meanwhile.
    """
    asked = [] if asked is None else asked
    tries, before = 0, progress()
    while True:
        code = run_ranks(command, ranks=ranks, logs=logs, asked=asked)
        if code not in (FAILED, HUNG) or asked or not restarts:
            return code
        now = progress()
        if now != before:
            tries, before = 0, now
        if tries == restarts:
            _say(f"given up: {restarts} starts in a row brought no new checkpoint (resilience.restarts)")
            return code
        wait = min(pause * 2**tries, LONGEST_PAUSE)
        tries += 1
        _say(f"starting again in {wait:g} s, {tries} of {restarts} in a row without a new checkpoint")
        if _stopped_within(wait):
            return STOPPED_EARLY
        startup.begin()


def newest_checkpoint(run_folder: Path) -> str | None:
    """Name of a run's newest complete checkpoint, its contents not verified."""
    checkpoints = complete_checkpoints(run_folder / "checkpoints")
    return checkpoints[-1].name if checkpoints else None


def _stopped_within(seconds: float) -> bool:
    """Wait; whether a stop signal came meanwhile."""
    deadline = time.monotonic() + seconds
    with stoppable() as stop:
        while not stop and time.monotonic() < deadline:
            time.sleep(0.1)
        return bool(stop)


def _say(line: str) -> None:
    print(f"megaphone: {line}", file=sys.stderr, flush=True)
