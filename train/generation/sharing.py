"""Work in pieces that any number of processes share: each takes a piece that nobody holds, until all are done.

Nobody speaks to anybody else: a piece is done when its file is there, and is held by a lock that a dead process loses.
So ranks of one job, tasks of an array and jobs that are started later share one folder, and what was killed goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from runtime.exits import StoppedEarly
from runtime.locks import claimed
from runtime.signals import StopFlag

CLAIMS = ".claims"
PAUSE = 1.0  # seconds between looks at what others hold


def share_out(
    folder: Path,
    pieces: Sequence[str],
    done: Callable[[str], bool],
    work: Callable[[str], None],
    stop: StopFlag,
    idle: Callable[[], None] = lambda: None,
) -> None:
    """Return when all `pieces`, relative names of files, are done; `work` makes one, and raises StoppedEarly where
    `stop` asks for it. `idle` is called before every look at pieces that others hold."""
    (folder / CLAIMS).mkdir(parents=True, exist_ok=True)
    left = list(pieces)
    while left := [piece for piece in left if not done(piece)]:
        busy = True
        for piece in left:
            if stop:
                raise StoppedEarly(f"stopped by {stop.name}; the same command goes on with what is left")
            with claimed(folder / CLAIMS / f"{piece.replace('/', '-')}.lock") as mine:
                if mine and not done(piece):
                    work(piece)
                    busy = False
        if busy:
            idle()
            time.sleep(PAUSE)
