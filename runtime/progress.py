"""How far a long preparation is: a bar with time left on a terminal, a few plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

Told = Callable[[float, float, float], str]
"""What to say of work beside its share: how much is done, of how much, in how many seconds."""


class Progress:
    """`with progress.phase("speech", total) as show: ... show(done)`; goes to standard error."""

    def __init__(self, title: str) -> None:
        self._title = title

    @contextmanager
    def phase(self, name: str, total: float, *, told: Told | None = None) -> Iterator[Callable[[float], None]]:
        """Shows one phase of work; `show` takes how much of `total` is done so far. `told` says it in units."""
        begun = time.monotonic()
        with (_bar if sys.stderr.isatty() else _lines)(f"{self._title}: {name}", total, told) as show:
            yield show
        self.say(f"{name} took {time.monotonic() - begun:.0f} s")

    def say(self, line: str) -> None:
        print(f"{self._title}: {line}", file=sys.stderr, flush=True)


@contextmanager
def _bar(title: str, total: float, told: Told | None) -> Iterator[Callable[[float], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    text = TextColumn("{task.description}")
    amounts = TextColumn("{task.fields[amounts]}")
    columns = (text, BarColumn(), TaskProgressColumn(), amounts, TimeElapsedColumn(), TimeRemainingColumn())
    begun = time.monotonic()
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(title, total=total, amounts="")

        def show(done: float) -> None:
            amounts = told(done, total, time.monotonic() - begun) if told else ""
            shown.update(task, completed=min(done, total), amounts=amounts)

        yield show


def hours_line(done: float, total: float, passed: float) -> str:
    """How many hours of speech are done, of about how many, and how fast; all given in seconds."""
    return f"{done / 3600:.2f} of {total / 3600:.2f} h of speech, {done / max(passed, 1e-9):.0f} h an hour"


def bytes_line(done: float, total: float, passed: float) -> str:
    """How many bytes are done, of how many, and how fast."""
    return f"{done / 1e9:.2f} of {total / 1e9:.2f} GB, {done / 1e6 / max(passed, 1e-9):.0f} MB/s"


@contextmanager
def _lines(title: str, total: float, told: Told | None) -> Iterator[Callable[[float], None]]:
    """A line every tenth of the work, at most one every ten seconds."""
    begun = said_at = time.monotonic()
    said = 0.0

    def show(done: float) -> None:
        nonlocal said, said_at
        now = time.monotonic()
        if done - said >= total / 10 and now - said_at >= 10:
            left = timedelta(seconds=round((now - begun) * max(total - done, 0) / done))
            amounts = f", {told(done, total, now - begun)}" if told else ""
            print(f"{title} {min(done / total, 1):.0%}{amounts}, {left} left", file=sys.stderr, flush=True)
            said, said_at = done, now

    yield show
