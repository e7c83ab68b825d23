"""Windows of steps under torch's profiler, opened by the config, by a signal or by a file."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from configs.schema import ProfileConfig
from runtime.signals import PROFILE_SIGNAL

FOLDER = "profiles"
REQUEST_FILE = "profile"  # in the run folder; rank 0 takes it away when it takes it up
_LOOK_SECONDS = 0.5  # between two looks for that file, which may be on a slow shared disk
_ROWS = 25  # operators in a table
_ALLOCATIONS = 100_000  # that a memory history remembers


class Requests:
    """Whether this rank was asked for a window: by PROFILE_SIGNAL, or (`watching`) by a file in the run folder."""

    def __init__(self, folder: Path, *, watching: bool) -> None:
        self._file = folder / REQUEST_FILE
        self._watching = watching
        self._looked = -_LOOK_SECONDS
        self._signalled = False

    def install(self) -> Requests:
        """Note the signal from now on. Main thread only."""
        signal.signal(PROFILE_SIGNAL, self._receive)
        return self

    def taken(self) -> bool:
        """Whether there was a request since the last call."""
        signalled, self._signalled = self._signalled, False
        if self._watching and time.monotonic() >= self._looked + _LOOK_SECONDS:
            self._looked = time.monotonic()
            if self._file.exists():
                self._file.unlink()
                return True
        return signalled

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True


class Windows:
    """Opens, closes and writes down the windows of one rank. All ranks are told the same, so that they record the same
    steps; those that `config.ranks` leaves out only count along."""

    def __init__(self, config: ProfileConfig, run_folder: Path, rank: int, device: torch.device) -> None:
        self._config = config
        self._folder = run_folder / FOLDER
        self._rank = rank
        self._cuda = device.type == "cuda"
        self._last = 0  # step of the open window, or of the last one
        self._planned = config.start is not None
        self._profiler: Any = None
        self._name = ""

    def before_step(self, step: int, asked: bool) -> str | None:
        """Open a window if its time has come; returns a line about it. `asked`: agreed over all ranks."""
        if step <= self._last:
            return None
        start = self._config.start
        if self._planned and start is not None and step >= max(1, start - 1):
            self._planned = False
            if step <= start:  # else the run went on from behind it
                return self._open(step, warm_up=step < start)
        return self._open(step, warm_up=True) if asked else None

    def after_step(self, step: int) -> None:
        if self._profiler is not None:
            self._profiler.step()
            if step == self._last:
                self.close()

    def close(self) -> None:
        """Write what an open window has recorded so far."""
        if self._profiler is None:
            return
        self._profiler.stop()
        self._profiler = None
        if self._cuda and self._config.memory:
            with self._at_most_a_line():
                partial = self._folder / f".{self._name}.memory.pickle"
                torch.cuda.memory._dump_snapshot(str(partial))
                os.replace(partial, self._folder / f"{self._name}.memory.pickle")
            torch.cuda.memory._record_memory_history(enabled=None)

    def _open(self, step: int, *, warm_up: bool) -> str:
        first = step + warm_up
        self._last = first + self._config.steps - 1
        self._name = f"step-{first:08d}-rank-{self._rank}"
        if self._config.ranks is None or self._rank in self._config.ranks:
            if self._cuda and self._config.memory:
                torch.cuda.memory._record_memory_history(max_entries=_ALLOCATIONS)
            self._profiler = profile(
                activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._cuda else [])],
                schedule=schedule(wait=0, warmup=int(warm_up), active=self._config.steps, repeat=1),
                on_trace_ready=self._write,
                profile_memory=True,
                acc_events=True,
            )
            self._profiler.start()
        return f"profiling steps {first} to {self._last} into {self._folder}"

    def _write(self, profiler: Any) -> None:
        with self._at_most_a_line():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._write_files(profiler)

    @contextmanager
    def _at_most_a_line(self) -> Iterator[None]:
        """A full disk costs the profile and a line, not the run."""
        try:
            yield
        except OSError as error:
            print(f"megaphone: {self._folder}/{self._name} was not written: {error}", file=sys.stderr, flush=True)

    def _write_files(self, profiler: Any) -> None:
        partial = self._folder / f".{self._name}.json.gz"
        profiler.export_chrome_trace(str(partial))
        os.replace(partial, self._folder / f"{self._name}.json.gz")
        place = "cuda" if self._cuda else "cpu"
        averages = profiler.key_averages()
        by_time = averages.table(sort_by=f"self_{place}_time_total", row_limit=_ROWS)
        by_memory = averages.table(sort_by=f"self_{place}_memory_usage", row_limit=_ROWS)
        partial = self._folder / f".{self._name}.txt"
        partial.write_text(
            f"Operators by their own time on the {place.upper()}\n{by_time}\n\n"
            f"Operators by the memory they took on the {place.upper()}\n{by_memory}\n",
            encoding="utf-8",
        )
        os.replace(partial, self._folder / f"{self._name}.txt")
