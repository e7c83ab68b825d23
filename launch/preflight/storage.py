"""How fast a node writes and reads the run folder."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from launch.preflight.node import Report

_BLOCK = 4 << 20
_LONGEST = 10.0  # seconds of writing and of reading, at most: a slow disk is told by less than all of it
_MB = 1e6


def speed(folder: Path, megabytes: float, node: str) -> Report:
    """MB/s of a new file in `folder`, written until it is on the disk, and read again past the page cache."""
    file = folder / f".preflight-{node}-{os.getpid()}"
    try:
        written, seconds = _write(file, int(megabytes * _MB))
        read, reading = _read(file)
    except OSError as error:
        return Report(lacks=[f"run.folder={folder} cannot be written: {error.strerror or error}"])
    finally:
        with contextlib.suppress(OSError):
            file.unlink()
    return Report(figures={"write": written / _MB / seconds, "read": read / _MB / reading})


def _write(file: Path, size: int) -> tuple[int, float]:
    """Bytes and seconds."""
    block = os.urandom(_BLOCK)  # nothing that a file system could make small
    done, start = 0, time.perf_counter()
    with file.open("xb", buffering=0) as out:
        while done < size and time.perf_counter() - start < _LONGEST:
            done += out.write(block[: min(_BLOCK, size - done)])
        os.fsync(out.fileno())
    return done, time.perf_counter() - start


def _read(file: Path) -> tuple[int, float]:
    with file.open("rb", buffering=0) as source:
        os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < _LONGEST and (block := source.read(_BLOCK)):
            done += len(block)
    return done, time.perf_counter() - start
