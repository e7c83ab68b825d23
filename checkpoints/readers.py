"""Whoever reads a checkpoint keeps it from being removed, where the file system has locks; else is told of it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runtime.exits import BadInput


@contextmanager
def reading(checkpoint: Path) -> Iterator[None]:
    """Hold a shared lock on a checkpoint's folder while the block reads it; any number of processes may.

    A file system without such locks grants none, and the checkpoint may go meanwhile. Raises BadInput in one line,
    whatever the block raised, where it did, and where it is just being removed.
    """
    try:
        descriptor = os.open(checkpoint, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise BadInput(f"{checkpoint}: {error.strerror}") from error
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        try:
            yield
        except Exception as error:
            if _is_there(checkpoint, descriptor):
                raise
            raise _gone(checkpoint) from error
        if not _is_there(checkpoint, descriptor):
            raise _gone(checkpoint)
    finally:
        os.close(descriptor)


@contextmanager
def unless_read(checkpoint: Path) -> Iterator[bool]:
    """Whether nobody reads a checkpoint; if so nobody begins to inside the block."""
    descriptor = os.open(checkpoint, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        except OSError:  # no locks here
            free = True
        yield free
    finally:
        os.close(descriptor)


def _is_there(checkpoint: Path, descriptor: int) -> bool:
    """Whether the folder still has its name."""
    try:
        return os.path.samestat(os.stat(checkpoint), os.fstat(descriptor))
    except OSError:
        return False


def _gone(checkpoint: Path) -> BadInput:
    return BadInput(
        f"{checkpoint} was removed while it was being read: its run keeps its newest checkpoints alone "
        "(checkpoint.keep); read a newer one"
    )
