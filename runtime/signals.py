"""Stop requests: SIGTERM, SIGUSR1 and SIGINT set a flag that every loop looks at.

A second SIGINT is not waited for: whoever presses Ctrl-C twice means it.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from runtime.exits import StoppedEarly

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
PROFILE_SIGNAL = signal.SIGUSR2  # asks a run to record its next steps; it ends nothing


class StopFlag:
    """Remembers the first stop signal this process received (`name`, or None while there was none)."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._promise: str | None = None

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
        self._raise_if_promised()

    @contextmanager
    def at_once(self, promise: str) -> Iterator[None]:
        """Inside, a stop signal raises StoppedEarly wherever the program is, and one that came before does on entry:
        for work without a loop to look at the flag, of which nothing is left half done. `promise` says what the same
        command will do. A call into compiled code is over first."""
        before, self._promise = self._promise, promise
        try:
            self._raise_if_promised()
            yield
        finally:
            self._promise = before

    def _raise_if_promised(self) -> None:
        if self.name is not None and self._promise is not None:
            raise StoppedEarly(f"stopped by {self.name}; {self._promise}")


@contextmanager
def stoppable() -> Iterator[StopFlag]:
    """Stop signals set the flag inside, and do what they did before once outside. Main thread only."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield StopFlag().install()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
