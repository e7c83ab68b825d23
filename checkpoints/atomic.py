"""Folders that appear complete or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"
REMOVED = ".removed"


def partial_of(folder: Path) -> Path:
    """Where `folder` is made before it takes its name."""
    return folder.with_name(folder.name + PARTIAL)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill; it takes the place of `folder` if the block ends well, else it is removed."""
    partial = partial_of(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        put_in_place(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def put_in_place(partial: Path, folder: Path) -> None:
    """Rename `partial` to `folder`. An old `folder` steps aside first: a folder cannot be renamed over a full one."""
    aside = _step_aside(folder) if folder.exists() else None
    os.rename(partial, folder)
    sync_folder(folder.parent)
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)


def remove(folder: Path) -> None:
    """Delete a folder such that it never stands half-deleted under its own name."""
    shutil.rmtree(_step_aside(folder), ignore_errors=True)


def _step_aside(folder: Path) -> Path:
    aside = folder.with_name(folder.name + REMOVED)
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(folder, aside)
    return aside


def write_file(path: Path, text: str) -> None:
    """Write a text file in one step: temporary name, fsync, rename."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file likewise."""
    partial = partial_of(path)
    with partial.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def exclusively(lock: Path) -> Iterator[None]:
    """Hold a lock file, so that several processes of a machine do a piece of work once."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
