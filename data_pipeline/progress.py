"""How far a long preparation is: a bar with time left on a terminal, a few plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta


class Progress:
    """`with progress.phase("speech", total) as show: ... show(done)`; goes to standard error."""

    def __init__(self, title: str) -> None:
        self._title = title

    @contextmanager
    def phase(self, name: str, total: float) -> Iterator[Callable[[float], None]]:
        """Shows one phase of work; `show` takes how much of `total` is done so far."""
        begun = time.monotonic()
        with (_bar if sys.stderr.isatty() else _lines)(f"{self._title}: {name}", total) as show:
            yield show
        self.say(f"{name} took {time.monotonic() - begun:.0f} s")

    def say(self, line: str) -> None:
        print(f"{self._title}: {line}", file=sys.stderr, flush=True)


@contextmanager
def _bar(title: str, total: float) -> Iterator[Callable[[float], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    text = TextColumn("{task.description}")
    columns = (text, BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(title, total=total)
        yield lambda done: shown.update(task, completed=min(done, total))


@contextmanager
def _lines(title: str, total: float) -> Iterator[Callable[[float], None]]:
    """A line every tenth of the work, at most one every ten seconds."""
    begun = said_at = time.monotonic()
    said = 0.0

    def show(done: float) -> None:
        nonlocal said, said_at
        now = time.monotonic()
        if done - said >= total / 10 and now - said_at >= 10:
            left = timedelta(seconds=round((now - begun) * max(total - done, 0) / done))
            print(f"{title} {min(done / total, 1):.0%}, {left} left", file=sys.stderr, flush=True)
            said, said_at = done, now

    yield show
