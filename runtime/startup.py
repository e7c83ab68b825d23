"""What a run's time to its first step goes into, from the command on.

Kept in the environment, so that whoever is started or takes over by exec goes on with it: a start, and after it each
phase with the time at which it ended, by the one clock that all processes of a machine and /proc share.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

VARIABLE = "MEGAPHONE_STARTUP"


def begin(at: float | None = None) -> None:
    """Start to count, `at` a time of this module's clock (None: now). What was counted before is gone."""
    os.environ[VARIABLE] = f"{_now() if at is None else at:.3f}"


def begin_with_process(*, again: bool = True) -> None:
    """Count from the moment at which this process was started; unless `again`, only where nobody has begun."""
    if again or VARIABLE not in os.environ:
        begin(_started())


def passed(phase: str) -> None:
    """`phase` has ended: it took what went by since the one before. Nothing where nobody counts (any more)."""
    if VARIABLE in os.environ:
        os.environ[VARIABLE] += f";{phase}={_now():.3f}"


def done() -> dict[str, float]:
    """End the count; returns the seconds of each phase, in order. Empty where nobody counts."""
    start, *marks = os.environ.pop(VARIABLE, "0").split(";")
    seconds: dict[str, float] = {}
    last = float(start)
    for mark in marks:
        phase, _, end = mark.partition("=")
        seconds[phase] = seconds.get(phase, 0.0) + float(end) - last
        last = float(end)
    return seconds


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _started() -> float:
    """When this process was started, to a hundredth of a second (proc(5), field 22 of `stat`)."""
    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")
