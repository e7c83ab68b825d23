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
    def phase(self, name: str, total: float, *, speech: bool = False) -> Iterator[Callable[[float], None]]:
        """Shows one phase of work; `show` takes how much of `total` is done so far. With `speech` both are seconds of
        it, and hours are shown, and how many are done in an hour."""
        begun = time.monotonic()
        with (_bar if sys.stderr.isatty() else _lines)(f"{self._title}: {name}", total, speech) as show:
            yield show
        self.say(f"{name} took {time.monotonic() - begun:.0f} s")

    def say(self, line: str) -> None:
        print(f"{self._title}: {line}", file=sys.stderr, flush=True)


@contextmanager
def _bar(title: str, total: float, speech: bool) -> Iterator[Callable[[float], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    text = TextColumn("{task.description}")
    hours = TextColumn("{task.fields[hours]}")
    columns = (text, BarColumn(), TaskProgressColumn(), hours, TimeElapsedColumn(), TimeRemainingColumn())
    begun = time.monotonic()
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(title, total=total, hours="")

        def show(done: float) -> None:
            spoken = hours_line(done, total, time.monotonic() - begun) if speech else ""
            shown.update(task, completed=min(done, total), hours=spoken)

        yield show


def hours_line(done: float, total: float, passed: float) -> str:
    """How many hours of speech are done, of about how many, and how fast; all given in seconds."""
    return f"{done / 3600:.2f} of {total / 3600:.2f} h of speech, {done / max(passed, 1e-9):.0f} h an hour"


@contextmanager
def _lines(title: str, total: float, speech: bool) -> Iterator[Callable[[float], None]]:
    """A line every tenth of the work, at most one every ten seconds."""
    begun = said_at = time.monotonic()
    said = 0.0

    def show(done: float) -> None:
        nonlocal said, said_at
        now = time.monotonic()
        if done - said >= total / 10 and now - said_at >= 10:
            left = timedelta(seconds=round((now - begun) * max(total - done, 0) / done))
            hours = f", {hours_line(done, total, now - begun)}" if speech else ""
            print(f"{title} {min(done / total, 1):.0%}{hours}, {left} left", file=sys.stderr, flush=True)
            said, said_at = done, now

    yield show
