"""Processes of a corpus build: one thread each, deaf to signals, gone when their parent is."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from typing import Any

from data_pipeline.progress import Progress
from runtime.exits import StoppedEarly
from runtime.signals import STOP_SIGNALS, StopFlag

Task = tuple[Callable[..., Any], tuple]  # a function of a module, and its arguments

_stopping: Any = None  # in a worker: the event that asks it to leave its task
_done: Any = None  # in a worker: how much all have done, for the progress bar


class TaskStopped(Exception):
    """A worker left its task unfinished, because it was asked to."""


def report_done(amount: float) -> None:
    """Called by a task after each small part of its work. Raises TaskStopped when the build is to stop."""
    if _done is not None:
        with _done.get_lock():
            _done.value += amount
    if _stopping is not None and _stopping.is_set():
        raise TaskStopped


def _start(stopping: Any, done: Any) -> None:
    from threadpoolctl import threadpool_limits

    global _stopping, _done
    _stopping, _done = stopping, done
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the parent decides, and says so through the event
    threadpool_limits(1)
    threading.Thread(target=leave_with_parent, daemon=True).start()


def leave_with_parent() -> None:
    """Wait for the parent process to end, however it does, and end this one too."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class Workers:
    """A pool of processes: `with Workers(2) as workers: workers.run("speech", tasks, total, progress, stop)`."""

    def __init__(self, processes: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._stopping, self._done = context.Event(), context.Value("d", 0.0)
        self._pool = ProcessPoolExecutor(
            processes, mp_context=context, initializer=_start, initargs=(self._stopping, self._done)
        )

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._pool.shutdown(cancel_futures=True)

    def run(
        self,
        phase: str,
        tasks: Sequence[Task],
        total: float,
        progress: Progress,
        stop: StopFlag | None,
    ) -> list[Any]:
        """Results of `function(*arguments)` for each of `tasks`, in their order, showing how much of `total` is done.

        The first error of a task is raised. Raises StoppedEarly within about a second of a stop request; tasks
        that were under way are left unfinished.
        """
        self._done.value = 0.0
        with progress.phase(phase, total) as show:
            futures = [self._pool.submit(function, *arguments) for function, arguments in tasks]
            waiting = set(futures)
            while waiting:
                finished, waiting = wait(waiting, timeout=0.2, return_when=FIRST_EXCEPTION)
                for future in finished:
                    future.result()
                show(self._done.value)
                if stop:
                    raise StoppedEarly(f"corpus build stopped in phase {phase}; the same command goes on from there")
        return [future.result() for future in futures]
