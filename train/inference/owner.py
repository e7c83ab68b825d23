"""An engine's processes end with the rank that started them, however it ended: vLLM's outlive one that was killed, and
with them the memory that they hold."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading

OWNER = "MEGAPHONE_ENGINE_OWNER"
"""Variable with the process id of the rank."""


def end_with_owner() -> None:
    """Have this process, and the one that started it for the owner, killed when the owner is gone."""
    owner, parent = int(os.environ.get(OWNER, "0")), os.getppid()
    if owner:
        threading.Thread(target=_watch, args=(owner, parent), name="owner", daemon=True).start()


def _watch(owner: int, parent: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it is gone already
        file = os.pidfd_open(owner)
        select.select([file], [], [])  # readable when the process has ended
    if parent not in (owner, 1) and os.getppid() == parent:
        with contextlib.suppress(ProcessLookupError):
            os.kill(parent, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
