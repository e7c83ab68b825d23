"""Stop requests: SIGTERM, SIGUSR1 and SIGINT set a flag that every loop looks at.

A second SIGINT is not waited for: whoever presses Ctrl-C twice means it.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
PROFILE_SIGNAL = signal.SIGUSR2  # asks a run to record its next steps; it ends nothing


class StopFlag:
    """Remembers the first stop signal this process received (`name`, or None while there was none)."""

    def __init__(self) -> None:
        self.name: str | None = None

    def install(self) -> StopFlag:
        """Route the stop signals of this process to this flag. Main thread only."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._receive)
        return self

    def __bool__(self) -> bool:
        return self.name is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name


@contextmanager
def stoppable() -> Iterator[StopFlag]:
    """Stop signals set the flag inside, and do what they did before once outside. Main thread only."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield StopFlag().install()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
