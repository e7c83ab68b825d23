"""What the loop asks, once a step, of everything that is measured on a rank."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from checkpoints.agreement import gather
from configs.schema import Config
from train.engines.protocol import Outcome
from train.observe import memory
from train.observe.phases import DATA, OTHER, PHASES
from train.observe.profiling import Requests, Windows
from train.resilience.stragglers import Change, Place, Stragglers


class Observer:
    """Measures this rank; every rank of a run has one and calls it at the same steps."""

    def __init__(self, config: Config) -> None:
        self._config = config.observe
        self._steps = config.train.steps
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        here = torch.version.cuda and torch.cuda.is_available()
        self._device = torch.device("cuda", torch.cuda.current_device()) if here else torch.device("cpu")
        folder = Path(config.run.folder)
        self._requests = Requests(folder, watching=self._rank == 0).install()
        self._windows = Windows(config.observe.profile, folder, self._rank, self._device)
        self._memory = memory.MemoryMeter(self._device)
        self._window = dict.fromkeys(PHASES, 0.0)  # seconds since the ranks were last compared
        self._window_steps = 0
        self._resilience = config.resilience
        self._stragglers: Stragglers | None = None  # known once the ranks are first compared
        self.changes: list[Change] = []  # of who is slow, found at the last step
        self._between: dict[str, float] = {}  # seconds since the last step
        self.totals: dict[str, float] = {}  # seconds by phase since this process began training, this rank's

    def window_asked(self) -> bool:
        """Whether this rank was asked for a profiler window since the last call."""
        return self._requests.taken()

    def before_step(self, step: int, asked: bool) -> str | None:
        """Open a profiler window if one is planned or was `asked` for on any rank; returns a line about it."""
        return self._windows.before_step(step, asked)

    def norms_due(self, step: int) -> bool:
        return self._due(step, self._config.norms_every)

    @contextmanager
    def between_steps(self, what: str) -> Iterator[None]:
        """Time what is done between steps: it is told with the next one, beside that one's own seconds."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(what, time.perf_counter() - began)

    def add(self, what: str, seconds: float) -> None:
        """Note `seconds` of what is told with the next step, beside that one's own."""
        self._between[what] = self._between.get(what, 0.0) + seconds
        self.totals[what] = self.totals.get(what, 0.0) + seconds

    def after_step(self, step: int, seconds: float, waited: float, outcome: Outcome) -> dict[str, Any]:
        """Entries for the step's record. Collective at every `ranks_every`-th step and at the last one.

        seconds: the whole step's, `waited` of them for data. time/<phase>: this rank's seconds, which add up to the
        step's; time/checkpoint, time/validation and time/incident come on top, for what was done since the step before.
        Where the ranks are compared, over all steps since they last were: ranks/<phase>/min, mean and max in seconds a
        step, and memory/<kind>, the highest mark of any rank in GiB; `changes` then tells who has become slow.
        """
        self._windows.after_step(step)
        engine = {phase: spent for phase, spent in outcome.seconds.items() if phase != OTHER}
        times = dict.fromkeys(PHASES, 0.0) | engine | {DATA: waited}
        times[OTHER] = max(0.0, seconds - sum(times.values()))
        for phase, spent in times.items():
            self._window[phase] += spent
            self.totals[phase] = self.totals.get(phase, 0.0) + spent
        self._window_steps += 1
        record: dict[str, Any] = {f"time/{phase}": spent for phase, spent in {**times, **self._between}.items()}
        self._between, self.changes = {}, []
        if self._config.ranks_every and (self._due(step, self._config.ranks_every) or step == self._steps):
            record |= self._compare(step)
        record |= {f"norm/{name}": norm for name, norm in outcome.norms.items()}
        return record | outcome.routing.spread()

    def close(self) -> None:
        self._windows.close()

    def _due(self, step: int, every: int) -> bool:
        return every > 0 and step % every == 0

    def _compare(self, step: int) -> dict[str, float]:
        """Gather every rank's window. One small collective."""
        peaks = self._memory.read()
        means = [self._window[phase] / self._window_steps for phase in PHASES]
        first = step - self._window_steps + 1
        self._window, self._window_steps = dict.fromkeys(PHASES, 0.0), 0
        own = [*means, *(peaks.get(key, -1.0) for key in memory.KEYS)]
        mine = torch.tensor(own, dtype=torch.float64, device=self._device)
        gathered = [torch.empty_like(mine) for _ in range(self._world)]
        dist.all_gather(gathered, mine)
        rows = torch.stack(gathered).tolist()
        self._look_for_stragglers(first, step, [dict(zip(PHASES, row, strict=False)) for row in rows])
        found: dict[str, float] = {}
        for phase, column in zip(PHASES, zip(*rows, strict=True), strict=False):
            if self._world > 1:
                found[f"ranks/{phase}/min"] = min(column)
                found[f"ranks/{phase}/mean"] = sum(column) / self._world
                found[f"ranks/{phase}/max"] = max(column)
        highest = [max(column) for column in zip(*rows, strict=True)][len(PHASES) :]
        return found | {f"memory/{key}": peak for key, peak in zip(memory.KEYS, highest, strict=True) if peak >= 0}

    def _look_for_stragglers(self, first: int, step: int, rows: list[dict[str, float]]) -> None:
        """Judge the window of steps `first` to `step`; collective when the ranks are first compared."""
        share = self._resilience.straggler_share
        if share is None or self._world == 1:
            return
        if self._stragglers is None:
            here = Place(socket.gethostname(), parallel_state.get_pipeline_model_parallel_rank())
            self._stragglers = Stragglers(share, self._resilience.straggler_comparisons, gather(here))
        self.changes = self._stragglers.compare(first, step, rows)
