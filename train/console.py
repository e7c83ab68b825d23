"""What a run prints: one aligned line every few steps, and a progress bar below them on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import IO, Any

from rich.console import Console as Terminal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

_SMOOTHING = 0.9  # of seconds a step, for the ETA


class Console:
    """Prints a run's progress; rank 0 has one.

    steps: of the whole run. start: steps that were done before this process. every: steps between lines.
    """

    def __init__(self, steps: int, start: int = 0, every: int = 10, stream: IO[str] | None = None) -> None:
        self._steps = steps
        self._every = max(1, every)
        self._seconds: float | None = None
        self._memory = ""
        self._terminal = Terminal(file=stream or sys.stdout, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        if self._terminal.is_terminal:
            columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
            self._bar = Progress(*columns, console=self._terminal, transient=True)
            self._task = self._bar.add_task("training", total=steps, completed=start, left="")
            self._bar.start()

    def step(self, record: Mapping[str, Any]) -> None:
        """Take in a step's record of `metrics.jsonl`; print it if its turn has come or it is the last."""
        step, seconds = record["step"], record.get("seconds")
        if seconds:
            before = self._seconds
            self._seconds = seconds if before is None else _SMOOTHING * before + (1 - _SMOOTHING) * seconds
        self._memory = _memory(record) or self._memory
        if self._bar is not None:
            self._bar.update(self._task, completed=step, left=f"{self._left(step)} left")
        if step % self._every == 0 or step == self._steps:
            self.note(self._line(record))

    def validation(self, record: Mapping[str, Any]) -> None:
        """Print a validation's record."""
        self.note(f"{self._place(record['step'])}  validation  {_losses(record)}")

    def note(self, line: str) -> None:
        """Print a line as it is, above the progress bar where there is one."""
        self._terminal.print(line, markup=False)
        self._terminal.file.flush()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _line(self, record: Mapping[str, Any]) -> str:
        parts = [self._place(record["step"]), _losses(record)]
        rates = {key: value for key, value in record.items() if key.startswith("lr/")}
        if rates:
            parts.append(f"lr {max(rates.values()):.2e}")
        if record.get("grad_norm") is not None:
            parts.append(f"grad {record['grad_norm']:7.3f}")
        if record.get("tokens_per_second") is not None:
            parts.append(f"{record['tokens_per_second']:9,.0f} tok/s")
        if record.get("mfu") is not None:
            parts.append(f"mfu {100 * record['mfu']:4.1f} %")
        parts += [f"{name} {100 * share:2.0f} %" for name, share in _waiting(record).items()]
        if self._memory:
            parts.append(self._memory)
        parts.append(f"{self._left(record['step']):>8} left")
        return "  ".join(parts)

    def _place(self, step: int) -> str:
        width = len(str(self._steps))
        return f"step {step:{width}d}/{self._steps}"

    def _left(self, step: int) -> str:
        """Estimated time to the last step, h:mm:ss."""
        if self._seconds is None:
            return "-:--:--"
        seconds = round(self._seconds * max(0, self._steps - step))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _waiting(record: Mapping[str, Any]) -> dict[str, float]:
    """Shares of a step's seconds in which nothing was computed: data, and between ranks."""
    names = {"data": "time/data", "comm": "time/communication"}
    seconds = record.get("seconds")
    return {name: record[key] / seconds for name, key in names.items() if key in record} if seconds else {}


def _memory(record: Mapping[str, Any]) -> str:
    """The highest mark of any rank: of its device, where it has one."""
    peak = record.get("memory/allocated", record.get("memory/host"))
    return "" if peak is None else f"mem {peak:5.1f} GiB"


def _losses(record: Mapping[str, Any]) -> str:
    """The loss, then its terms; "lm" is left out where it is the whole loss, and so are the terms of single sources."""
    terms = {key.removeprefix("loss/"): value for key, value in record.items() if key.startswith("loss/")}
    terms = {name: value for name, value in terms.items() if "/" not in name}
    if terms.get("lm") == record.get("loss"):
        terms.pop("lm", None)
    shown = {"loss": record.get("loss"), **terms, **{name: record.get(f"ppo/{name}") for name in ("reward", "kl")}}
    return "  ".join(f"{name} {value:7.4f}" for name, value in shown.items() if value is not None)
