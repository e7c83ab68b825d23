"""Runs a conversion: planned first, written by many processes and machines, going on wherever it was cut off.

A result is made in `<destination>.partial` and takes its name when it is whole. In `work/` there, plan.json says which
conversion of which source it is, and every finished item has a file with its hashes (`journal`); what a process was at
when it was killed is done again. Processes with shares of one conversion need that folder in common and nothing else;
whichever finds everything done finishes it.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from checkpoints.card import LogitsAgreement, RoundTrip
from checkpoints.conversion import finishing, safetensors_files, tasks
from checkpoints.conversion.finishing import Beside
from checkpoints.conversion.job import Item, Job, Target
from checkpoints.conversion.journal import WORK, begin, begun, fingerprint, is_done, read_done
from checkpoints.conversion.opened import Conversion
from checkpoints.conversion.reading import NativeSlabs
from checkpoints.layout import TENSORS
from checkpoints.manifest import problems, read_manifest
from runtime.exits import BadInput, StoppedEarly
from runtime.locks import only_one
from runtime.progress import Progress, bytes_line
from runtime.share import Share
from runtime.workers import Task, Workers

DOING = "conversion"
SMALL = 1 << 30  # bytes; what is less takes no longer than starting processes does, and is written by this one
PRELOADED = ("checkpoints.conversion.tasks",)
_VERIFIED = "verified"  # marks in work/ that every file of a native source has been hashed


@dataclass(frozen=True)
class How:
    """How a conversion is run; none of it changes what is written.

    workers: processes; None: one a core, or none where there is little to do. keep: what is done when it is stopped or
    fails, to go on from; else nothing stays. check: read the result again and compare. logits: compares the logits of
    the complete result with the source's.
    """

    workers: int | None = None
    share: Share = field(default_factory=Share)
    stop: object = None
    keep: bool = True
    check: bool = False
    logits: Callable[[Path], LogitsAgreement] | None = None


def run(job: Job, destination: Path, beside: Beside, how: How) -> Path | None:
    """Convert; the destination, or None where other shares are not done yet. An older destination is replaced.

    Raises BadInput, in one line, where the source is damaged or has changed since the conversion began, rules and
    source do not fit, or the disk has no room or fails; StoppedEarly soon after `how.stop` turns true.
    """
    with _tidy(job, how):
        return _Run(job, destination, beside, how).run()


@contextmanager
def _tidy(job: Job, how: How) -> Iterator[None]:
    """Errors of the disk in one line, and nothing left behind where nothing is to be kept."""
    try:
        yield
    except BaseException as error:
        if not how.keep:
            shutil.rmtree(job.folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise BadInput(f"cannot write {job.folder}: {error.strerror or error}") from error
        raise
    finally:
        tasks.forget()


class _Run:
    def __init__(self, job: Job, destination: Path, beside: Beside, how: How) -> None:
        self.job = job
        self.destination = destination
        self.beside = beside
        self.how = how
        self.conversion = Conversion(job)
        self.progress = Progress(f"{DOING} into {destination.name}")

    def run(self) -> Path | None:
        left_out = self.conversion.left_out  # for its refusals, before anything is made
        items = self.conversion.items
        self._say_plan(items, len(left_out))
        self._begin()
        whole = "" if self.how.share.tasks == 1 else f"-{self.how.share.task}-of-{self.how.share.tasks}"
        with self._alone(f"share{whole}.lock"):
            if not self.job.folder.exists():
                return self.destination  # finished by the process that was waited for
            mine = [item for item in self.how.share.of(items) if not is_done(self.job.folder, item.number)]
            with self._processes(mine) as workers:
                self._verify_source(workers)
                self._write(workers, mine)
                return self._finish(workers, items)

    def _say_plan(self, items: Sequence[Item], left_out: int) -> None:
        total = sum(item.nbytes for item in items)
        if total < SMALL and not self.how.workers:
            return
        more = f", {left_out} of the source's left out" if left_out else ""
        share = f"; {self.how.share}" if self.how.share.tasks > 1 else ""
        self.progress.say(f"{len(self.conversion.slabs)} tensors and layers of them, {total / 1e9:.2f} GB{more}{share}")

    def _begin(self) -> None:
        folder = self.job.folder
        if folder.exists() and begun(folder) is None and not (folder / WORK).exists():
            shutil.rmtree(folder)  # what another program left
        (folder / WORK).mkdir(parents=True, exist_ok=True)
        source = fingerprint(self.conversion.source.files())
        with self._alone("plan.lock"):
            try:
                begin(self.job, source)
            except BadInput:
                if self.how.keep:
                    raise
                shutil.rmtree(folder)
                begin(self.job, source)
            self._check_space()
            if self.job.target is Target.native:
                (folder / TENSORS).mkdir(exist_ok=True)
            else:
                safetensors_files.prepare(folder, safetensors_files.layout_of(self.conversion))

    def _check_space(self) -> None:
        undone = sum(item.nbytes for item in self.conversion.items if not is_done(self.job.folder, item.number))
        free = shutil.disk_usage(self.job.folder).free
        if undone > free:
            raise BadInput(
                f"cannot write {self.destination}: it takes {undone / 1e9:.2f} GB more, {free / 1e9:.2f} GB are free"
            )

    def _alone(self, name: str) -> Any:
        file = self.job.folder / WORK / name
        return only_one(file, lambda: self.progress.say("another process is at it; waiting"), self.how.stop)

    # --- the phases ---------------------------------------------------------------------------------------------

    def _verify_source(self, workers: _Processes) -> None:
        """Hash a native source's files, once a conversion. Others have no hashes of their own."""
        mark = self.job.folder / WORK / _VERIFIED
        if not isinstance(self.conversion.source, NativeSlabs) or mark.exists():
            return
        refused = f"refused checkpoint {self.job.source}: "
        if found := problems(self.job.source, contents=False):
            raise BadInput(refused + found[0])
        files = read_manifest(self.job.source).files
        checks: list[Task] = [(tasks.verify, (self.job.source, *one)) for one in files.items()]
        for problem in workers.each("source", checks, sum(record.size for record in files.values())):
            if problem is not None:
                raise BadInput(refused + problem)
        mark.touch()

    def _write(self, workers: _Processes, mine: Sequence[Item]) -> None:
        work: list[Task] = [(tasks.write, (self.job, item.number)) for item in mine]
        for _ in workers.each("writing", work, sum(item.nbytes for item in mine)):
            pass

    def _finish(self, workers: _Processes, items: Sequence[Item]) -> Path | None:
        missing = [item.number for item in items if not is_done(self.job.folder, item.number)]
        if missing:
            self.progress.say(
                f"{self.how.share} is done; {len(missing)} of {len(items)} items are others' and not there"
            )
            return None
        with self._alone("finish.lock"):
            if not (self.job.folder / WORK).exists():
                return self.destination  # finished by another share meanwhile
            done = [read_done(self.job.folder, item.number) for item in items]
            finishing.make_readable(self.conversion, done, self.beside)
            trip = None
            if self.how.check:
                checks: list[Task] = [(tasks.check, (self.job, item.number)) for item in items]
                trip = RoundTrip.merged(workers.each("checking", checks, sum(item.nbytes for item in items)))
            finishing.make_complete(self.conversion, done, self.beside, trip, None)
            if self.how.logits is not None:
                agreement = self.how.logits(self.job.folder)
                finishing.make_complete(self.conversion, done, self.beside, trip, agreement)
            finishing.put(self.job, self.destination)
        return self.destination

    @contextmanager
    def _processes(self, mine: Sequence[Item]) -> Iterator[_Processes]:
        total = sum(item.nbytes for item in mine)
        count = self.how.workers
        if count is None:
            count = 0 if total < SMALL else len(os.sched_getaffinity(0))
        count = min(count, len(mine))
        if count == 0:
            yield _Processes(None, self.progress, self.how.stop)
            return
        forked = threading.active_count() == 1 and not torch.cuda.is_initialized()  # else not safe
        with Workers(count, doing=DOING, option="--workers", preload=PRELOADED, forked=forked) as workers:
            yield _Processes(workers, self.progress, self.how.stop)


class _Processes:
    """The workers, or this process itself where there is too little to do for any."""

    def __init__(self, workers: Workers | None, progress: Progress, stop: object) -> None:
        self._workers = workers
        self._progress = progress
        self._stop = stop

    def each(self, phase: str, work: Sequence[Task], total: int) -> Iterator[Any]:
        """Results of the tasks, as they come. Raises what they do, and StoppedEarly at a stop signal."""
        if self._workers is not None:
            yield from self._workers.each(phase, work, total, self._progress, self._stop, told=bytes_line)
            return
        for function, arguments in work:
            self._look(0)
            yield function(*arguments, tick=self._look)

    def _look(self, _: int) -> None:
        if self._stop:
            raise StoppedEarly(f"{DOING} stopped; the same command starts it again")
