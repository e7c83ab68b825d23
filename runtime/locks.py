"""Locks between processes that a dead process never holds."""

from __future__ import annotations

import errno
import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.exits import StoppedEarly

_BUSY = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}
_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


@contextmanager
def only_one(file: Path, say: Callable[[], None], stop: object) -> Iterator[None]:
    """Hold the lock on `file`; `say` is called once where another process holds it and is waited for.

    The kernel frees it however its holder ends, on NFS its server does. Where a file system has no locks there is no
    waiting: all that is done under a lock has the same result when it is done twice at once, and costs time only.
    Raises StoppedEarly for a stop request while waiting.
    """
    with file.open("w") as lock:
        said = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno in _WITHOUT_LOCKS:
                    break
                if error.errno not in _BUSY:
                    raise
            if not said:
                say()
                said = True
            if stop:
                raise StoppedEarly("stopped while another process was at work on it; the same command goes on")
            time.sleep(0.5)
        yield


@contextmanager
def claimed(file: Path) -> Iterator[bool]:
    """Try for the lock on `file`, and hold it where it was free: whether it was. Where a file system has no locks it
    always is, as in `only_one`."""
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _BUSY:
                yield False
                return
            if error.errno not in _WITHOUT_LOCKS:
                raise
        yield True
