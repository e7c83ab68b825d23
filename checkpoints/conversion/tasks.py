"""What the processes of a conversion do: an item, written or read again, or a file's hash."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import torch

from checkpoints.card import RoundTrip
from checkpoints.card_rows import compare
from checkpoints.conversion import native_files, safetensors_files
from checkpoints.conversion.job import Job, Target
from checkpoints.conversion.journal import read_done, write_done
from checkpoints.conversion.opened import Conversion
from checkpoints.manifest import FileRecord, problem_of
from runtime.exits import BadInput
from runtime.host_memory import keep_freed_memory
from runtime.workers import report_done

_opened: dict[str, Conversion] = {}


def write(job: Job, number: int, tick: Callable[[int], None] = report_done) -> None:
    """Write item `number` and mark it done. Raises BadInput where the disk fails or the source is damaged."""
    if multiprocessing.parent_process() is not None:  # a tensor's memory serves the next one
        keep_freed_memory()
    conversion = _conversion(job)
    item = conversion.items[number]
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)  # a third of the time; the manifest has a hash of every file
    try:
        writer = native_files if job.target is Target.native else safetensors_files
        write_done(job.folder, number, writer.write_item(conversion, item, tick))
    except OSError as error:
        raise BadInput(f"cannot write {job.folder}: {error.strerror or error}") from error
    finally:
        torch.serialization.set_crc32_options(before)
        conversion.release()


def check(job: Job, number: int, tick: Callable[[int], None] = report_done) -> RoundTrip:
    """Read what item `number` has written, take it apart and compare it with the source's hashes."""
    conversion = _conversion(job)
    split, target = conversion.source.split, conversion.result
    found = RoundTrip(0, 0)
    for slab, row in zip(conversion.items[number].slabs, read_done(job.folder, number).rows, strict=True):
        apart = [part.held for part in target.read(slab.rule, slab.layer)]
        if target.split and not split:
            apart = [conversion.layouts.fuse(slab.rule.layout, apart)]
        elif split and not target.split:
            apart = conversion.layouts.split(slab.rule.layout, apart[0])
        found = RoundTrip.merged([found, compare(row, apart)])
        target.release()
        tick(slab.nbytes)
    return found


def verify(folder: Path, name: str, record: FileRecord, tick: Callable[[int], None] = report_done) -> str | None:
    """What is wrong with a file of a native checkpoint; None if nothing."""
    problem = problem_of(folder, name, record)
    tick(record.size)
    return problem


def forget() -> None:
    """Let go of what this process has opened: the same paths may hold something else next time."""
    _opened.clear()


def _conversion(job: Job) -> Conversion:
    key = repr(job)
    if key not in _opened:
        _opened.clear()
        _opened[key] = Conversion(job)
    return _opened[key]
