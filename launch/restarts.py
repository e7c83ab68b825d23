"""A run that fails is started again, a bounded number of times; it goes on from its newest checkpoint by itself."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from checkpoints.layout import complete_checkpoints
from launch.local import run_ranks
from runtime import startup
from runtime.exits import FAILED, HUNG, STOPPED_EARLY
from runtime.log_lines import Stamper
from runtime.signals import stoppable

LONGEST_PAUSE = 300.0  # seconds
LAUNCHER_LOG = "launcher.log"


@dataclass(frozen=True)
class Failed:
    """A start that failed. began: seconds since 1970; ends: as `run_ranks` gives them; next: what is done about it, in
    one line; again: whether it is started again."""

    number: int
    code: int
    began: float
    ends: Mapping[int, int]
    next: str
    again: bool


def run_again(
    command: Sequence[str],
    *,
    ranks: int,
    logs: Path,
    restarts: int,
    pause: float,
    progress: Callable[[], object],
    asked: list[int] | None = None,
    failed: Callable[[Failed], None] = lambda _: None,
) -> int:
    """`local.run_ranks`, and again after a crash or a hang; returns the last exit code.

    Bad input, a halted run and a stop on request are no reason to start again. After `restarts` failures in a row
    between which `progress` told nothing new, it is given up. `pause`: seconds before the first start again, doubled
    each time. `asked` takes the stop signals that come meanwhile; `failed` is told of every crash and hang, before it
    is waited.
    """
    asked = [] if asked is None else asked
    tries, number, before = 0, 0, progress()
    while True:
        ends: dict[int, int] = {}
        began, number = time.time(), number + 1
        code = run_ranks(command, ranks=ranks, logs=logs, asked=asked, ends=ends)
        if code not in (FAILED, HUNG) or asked:
            return code
        now = progress()
        if now != before:
            tries, before = 0, now
        wait = back_off(tries, pause)
        again = tries < restarts
        if again:
            tries += 1
            then = f"starting again in {wait:g} s, {tries} of {restarts} in a row without a new checkpoint"
        elif restarts:
            then = f"given up: {restarts} starts in a row brought no new checkpoint (resilience.restarts)"
        else:
            then = "not started again (resilience.restarts=0)"
        failed(Failed(number, code, began, ends, then, again))
        if again or restarts:
            say(then, logs)
        if not again:
            return code
        if _stopped_within(wait):
            return STOPPED_EARLY
        startup.begin()


def back_off(tries: int, pause: float) -> float:
    """Seconds to wait before a start after so many in a row that came to nothing."""
    return min(pause * 2.0 ** min(tries, 64), LONGEST_PAUSE)


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


def say(line: str, logs: Path) -> None:
    """A line of the launcher's, on the console and in its own log."""
    print(f"megaphone: {line}", file=sys.stderr, flush=True)
    with contextlib.suppress(OSError), (logs / LAUNCHER_LOG).open("a", encoding="utf-8") as log:
        log.write(Stamper(-1)(f"megaphone: {line}\n"))
