"""Processes that share a piece of work: one thread each, deaf to signals, gone when their parent is."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

from runtime.exits import BadInput, StoppedEarly
from runtime.progress import Progress, Told
from runtime.signals import STOP_SIGNALS

Task = tuple[Callable[..., Any], tuple]  # a function of a module, and its arguments

_stopping: Any = None  # in a worker: the event that asks it to leave its task
_done: Any = None  # in a worker: how much all have done, for the progress bar


class TaskStopped(Exception):
    """A worker left its task unfinished, because it was asked to."""


def report_done(amount: float) -> None:
    """Called by a task after each small part of its work. Raises TaskStopped when the work is to stop."""
    if _done is not None:
        with _done.get_lock():
            _done.value += amount
    if _stopping is not None and _stopping.is_set():
        raise TaskStopped


def visible_gpus(environment: Mapping[str, str], devices: Path = Path("/dev")) -> list[str]:
    """Names of the NVIDIA GPUs that CUDA would show this process; CUDA is not asked, for that would start it."""
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    found = (device.name.removeprefix("nvidia") for device in devices.glob("nvidia*"))
    return sorted((number for number in found if number.isdecimal()), key=int)


def _start(stopping: Any, done: Any, started: Any, gpus: list[str]) -> None:
    from threadpoolctl import threadpool_limits

    global _stopping, _done
    _stopping, _done = stopping, done
    with started.get_lock():
        number = started.value
        started.value += 1
    os.environ["OMP_NUM_THREADS"] = "1"  # of libraries that are loaded later
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
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

    def __init__(
        self,
        processes: int,
        *,
        deal_gpus: bool = False,
        doing: str = "corpus build",
        option: str = "corpus.workers",
        preload: Sequence[str] = (),
        forked: bool = False,
    ) -> None:
        """With `deal_gpus` each process sees one of the GPUs that this one sees, in turn, as its `cuda`. `doing` and
        `option` name the work and its number of processes to the user. Modules to `preload` are imported once, by a
        process that all others are forked from. `forked`: they are copies of this very process instead, which has
        imported all that they need: only where it has one thread, for locks of others would be held for ever in a copy.
        """
        self._processes = processes
        self._work, self._option = doing, option
        context: Any = multiprocessing.get_context("fork" if forked else "forkserver" if preload else "spawn")
        if preload and not forked:
            context.set_forkserver_preload(list(preload))
        self._stopping, self._done = context.Event(), context.Value("d", 0.0)
        gpus = visible_gpus(os.environ) if deal_gpus else []
        shared = (self._stopping, self._done, context.Value("i", 0), gpus)
        self._pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start, initargs=shared)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._pool.shutdown(cancel_futures=True)

    def run(
        self,
        phase: str,
        tasks: Iterable[Task],
        total: float,
        progress: Progress,
        stop: object,
        *,
        told: Told | None = None,
    ) -> list[Any]:
        """What `each` gives, all of it, in the order of the tasks."""
        numbered = self._numbered(phase, tasks, total, progress, stop, told=told)
        return [result for _, result in sorted(numbered, key=itemgetter(0))]

    def each(
        self,
        phase: str,
        tasks: Iterable[Task],
        total: float,
        progress: Progress,
        stop: object,
        *,
        told: Told | None = None,
    ) -> Iterator[Any]:
        """Results of `function(*arguments)` for each of `tasks`, as they come, showing how much of `total` is done.

        `told` says that in units. Few tasks are held at a time. The first error of a task is raised; BadInput
        where a process was killed. Raises StoppedEarly within about a second of a stop request; tasks that were under
        way are left unfinished.
        """
        numbered = self._numbered(phase, tasks, total, progress, stop, told=told)
        return (result for _, result in numbered)

    def _numbered(
        self,
        phase: str,
        tasks: Iterable[Task],
        total: float,
        progress: Progress,
        stop: object,
        *,
        told: Told | None = None,
    ) -> Iterator[tuple[int, Any]]:
        self._done.value = 0.0
        ahead = enumerate(tasks)
        waiting: dict[Future[Any], int] = {}
        with progress.phase(phase, total, told=told) as show:
            while True:
                for number, (function, arguments) in islice(ahead, 2 * self._processes - len(waiting)):
                    waiting[self._pool.submit(function, *arguments)] = number
                if not waiting:
                    return
                finished, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                show(self._done.value)
                if stop:
                    raise StoppedEarly(f"{self._work} stopped in phase {phase}; the same command goes on from there")
                for future in finished:
                    try:
                        yield waiting.pop(future), future.result()
                    except BrokenProcessPool as error:
                        raise BadInput(
                            f"a process of the {self._work} was killed in phase {phase}, as happens where memory runs "
                            f"out: set {self._option} lower and run again, what is finished is kept"
                        ) from error
