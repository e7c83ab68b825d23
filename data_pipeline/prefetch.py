"""Reading ahead on a background thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
_POLL = 0.1  # seconds between looks at whether to stop


class Prefetcher(Generic[T]):
    """Calls `produce` over and over on a thread of its own, at most `depth` results ahead of `next`.

    What `produce` raises is raised by the `next` that would have had its result, and by every one after.
    """

    def __init__(self, produce: Callable[[], T], depth: int) -> None:
        self._produce = produce
        self._results: queue.Queue[T] = queue.Queue(depth)
        self._closed = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> int:
        """Results that `next` would give at once."""
        return self._results.qsize()

    def next(self) -> T:
        while True:
            try:
                return self._results.get(timeout=_POLL)
            except queue.Empty:
                if self._thread.is_alive() or not self._results.empty():
                    continue
                if self._error is not None:
                    raise self._error from None
                raise RuntimeError("next() of a closed prefetcher") from None

    def close(self) -> None:
        """Stop the thread and wait for it; results not yet taken are lost."""
        self._closed.set()
        self._thread.join()

    def _work(self) -> None:
        try:
            while not self._closed.is_set():
                self._put(self._produce())
        except BaseException as error:  # handed to the caller of next()
            self._error = error

    def _put(self, result: T) -> None:
        while not self._closed.is_set():
            try:
                self._results.put(result, timeout=_POLL)
                return
            except queue.Full:
                continue
