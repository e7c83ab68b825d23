"""Work in a thread of its own, which nobody has to wait for to the end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class Beside:
    """`work()` is under way from the moment that this is made, and dies with the process."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._result: Any = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._work()
        except Exception as error:
            self._error = error

    def result(self, seconds: float | None = None) -> Any:
        """What the work returned, or its exception; TimeoutError where it takes longer."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            raise TimeoutError
        if self._error is not None:
            raise self._error
        return self._result
