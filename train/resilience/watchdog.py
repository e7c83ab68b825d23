"""The watchdog of a rank: it writes heartbeats, and ends a run that hangs, with every rank's stacks on disk.

Ranks tell each other through files in the run folder, so it works where no collective does. The rank that first finds
itself without progress for too long, in most hangs one that waits for another, raises an alarm. All that see it write
down the stacks of their threads, look who is behind, and end with exit code 76. A rank whose process is stopped or
gone can do none of this: its heartbeat stands still, and the others name it for that.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import IO

import torch.distributed as dist

from configs.schema import Config
from runtime.exits import HUNG, leave
from runtime.log_lines import Level, Stamp
from train.observe import collectives
from train.resilience import heartbeats
from train.resilience.heartbeats import Heartbeat, Pulse

STACKS = "stacks-rank-{}.txt"
TICK = 1.0  # seconds between heartbeats
STARTING = 600.0  # seconds allowed until the first step is done, where `limit` is less: kernels are built, data is read
_WAITING = ("torch/distributed/", "megatron/core/pipeline_parallel/p2p_communication")  # code that waits for others
_OURS = Path(__file__).resolve().parents[2]


class Watchdog:
    """Watches over this rank from a thread, from `start` to `close`.

    start_name: of this start of the run, the same on all ranks and of no earlier one. limit: seconds without progress
    that are a hang; None: only heartbeats are written. `leave` ends the process.
    """

    def __init__(
        self,
        run_folder: Path,
        rank: int,
        world: int,
        start_name: str,
        limit: float | None,
        leave: Callable[[int], None] = leave,
    ) -> None:
        self.pulse = Pulse()
        self._run_folder = run_folder
        self._folder = heartbeats.folder_of(run_folder)
        self._rank = rank
        self._world = world
        self._start_name = start_name
        self._limit = limit
        self._leave = leave
        self._tick = TICK if limit is None else min(TICK, limit / 5)
        self._written = 0
        self._alarm = self._folder / f"{heartbeats.ALARM}-{start_name}"
        self._main = threading.main_thread().ident
        self._closed = threading.Event()
        self._stacks: IO[str] | None = None
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        if self._limit is not None:
            logs = self._run_folder / "logs"
            logs.mkdir(parents=True, exist_ok=True)
            self._stacks = (logs / STACKS.format(self._rank)).open("a", encoding="utf-8")
        self._beat()
        self._thread.start()

    def close(self) -> None:
        """Stop watching: what comes now may take its time."""
        self._closed.set()
        self._thread.join()
        self._beat()
        if self._stacks is not None:
            faulthandler.cancel_dump_traceback_later()
            self._stacks.close()

    # --- the thread -----------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._closed.wait(self._tick):
            self._beat()
            if self._stacks is None:
                continue
            # Without the interpreter's lock this thread can't run; faulthandler's, which is written in C, can.
            faulthandler.dump_traceback_later(self._allowed + 60, exit=True, file=self._stacks)
            if self.pulse.since > self._allowed or self._alarm.exists():
                self._end()
                return

    @property
    def _allowed(self) -> float:
        assert self._limit is not None
        return self._limit if self.pulse.trained else max(self._limit, STARTING)

    def _beat(self, waits: bool | None = None, where: str | None = None) -> None:
        """A full disk or a file system that is away costs the heartbeat, not the run."""
        self._written += 1
        beat = heartbeats.beat_of(self.pulse, self._rank, self._start_name, self._written)
        with contextlib.suppress(OSError):
            heartbeats.write(self._folder, replace(beat, waits=waits, where=where))

    def _end(self) -> None:
        with contextlib.suppress(OSError):
            self._alarm.touch()
        waits, where = _place(sys._current_frames().get(self._main or 0))
        self._dump()
        self._beat(waits, where)
        time.sleep(3 * self._tick)  # the others see the alarm
        first = heartbeats.read(self._run_folder)
        for _ in range(3):
            time.sleep(self._tick)
            self._beat(waits, where)
        last = heartbeats.read(self._run_folder)
        if self._closed.is_set():  # it moved again, and got to its end
            return
        line = describe(first, last, self._world, self._start_name)
        print(f"megaphone: error: rank {self._rank}: {line}", file=sys.stderr, flush=True)
        self._leave(HUNG)

    def _dump(self) -> None:
        assert self._stacks is not None
        with contextlib.suppress(OSError):
            stamp = Stamp(time.time(), socket.gethostname().partition(".")[0], self._rank, Level.error)
            self._stacks.write(
                f"{stamp} stacks of pid {os.getpid()}: {self.pulse.since:.1f} s without progress after "
                f"step {self.pulse.step}, {self.pulse.phase}\n"
            )
            self._stacks.flush()
            faulthandler.dump_traceback(self._stacks, all_threads=True)


@contextlib.contextmanager
def watching(config: Config) -> Iterator[Pulse]:
    """Watch over this rank while the context lasts; every rank of the default process group enters it."""
    folder = Path(config.run.folder)
    name: list[str | None] = [None]
    if dist.get_rank() == 0:
        heartbeats.clear(folder)
        name = [f"{time.time_ns():x}-{os.getpid()}"]
    dist.broadcast_object_list(name)  # the others wait here until old heartbeats are gone
    assert name[0] is not None
    watchdog = Watchdog(folder, dist.get_rank(), dist.get_world_size(), name[0], config.resilience.hang_seconds)
    watchdog.start()
    try:
        yield watchdog.pulse
    finally:
        watchdog.close()


def describe(first: Mapping[int, Heartbeat], last: Mapping[int, Heartbeat], world: int, start_name: str) -> str:
    """One line: which ranks are behind. `first` and `last` are heartbeats read some seconds apart in an alarm."""
    here = {rank: beat for rank, beat in last.items() if beat.start == start_name}
    longest = max((beat.since for beat in here.values()), default=0.0)
    head = f"no progress for {longest:.0f} s: "
    silent = [rank for rank in range(world) if rank not in here or _still(first.get(rank), here[rank])]
    if silent:
        return head + "; ".join(f"rank {rank} does not answer{_last_seen(here.get(rank))}" for rank in silent)
    fewest = min(beat.moves for beat in here.values())
    behind = [beat for beat in here.values() if beat.moves == fewest]
    if len(behind) == len(here):
        behind = [beat for beat in behind if beat.waits is False] or behind
    if len(behind) == len(here) > 1:
        return head + f"all ranks are in the same place, after step {behind[0].step}, {behind[0].phase}"
    return head + "; ".join(f"rank {beat.rank} is behind{_last_seen(beat)}" for beat in behind)


def _still(first: Heartbeat | None, last: Heartbeat) -> bool:
    """Whether a rank wrote no heartbeat in between and has not answered the alarm either; who has may have left."""
    return last.waits is None and first is not None and first.written == last.written


def _last_seen(beat: Heartbeat | None) -> str:
    if beat is None:
        return ", and never did"
    where = f", in {beat.where}" if beat.where else ""
    return f" (after step {beat.step}, {beat.phase}{where}; pid {beat.pid} on {beat.host})"


def _place(frame: FrameType | None) -> tuple[bool, str | None]:
    """Whether a thread waits for other ranks, and the innermost line of Megaphone's own that it is in."""
    waits, where = False, None
    while frame is not None:
        file = frame.f_code.co_filename
        waits = waits or any(name in file for name in _WAITING)
        ours = Path(file).is_relative_to(_OURS) and "site-packages" not in file
        if where is None and ours and file != collectives.__file__:  # which stands around what others call
            where = f"{Path(file).relative_to(_OURS)}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return waits, where
