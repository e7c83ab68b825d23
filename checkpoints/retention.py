"""Which checkpoints of a run stay, and removing the others."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from checkpoints.atomic import PARTIAL, REMOVED, remove
from checkpoints.layout import complete_checkpoints, step_of
from checkpoints.manifest import problems
from checkpoints.readers import unless_read


def prune(folder: Path, keep: int, keep_every: int = 0, log: Callable[[str], None] | None = None) -> list[Path]:
    """Remove complete checkpoints but the newest `keep` (0 keeps all) and those of every `keep_every`-th step (0:
    none), and what unfinished saves and removals left. Returns what was removed.

    For one process, while no save is under way. The newest one whose files are all there in full stays in any case.
    One that a process is reading stays until the next time; one that cannot be removed is reported to `log`. A
    checkpoint loses its name before it is taken apart, so that a crash leaves nothing that looks complete.
    """
    removed = [path for path in to_remove(complete_checkpoints(folder), keep, keep_every) if _remove(path, log)]
    left = [path for path in folder.glob("step-*") if path.suffix in (PARTIAL, REMOVED)] if folder.is_dir() else []
    for path in left:
        shutil.rmtree(path, ignore_errors=True)
    return removed


def to_remove(checkpoints: list[Path], keep: int, keep_every: int) -> list[Path]:
    """Of complete checkpoints, oldest first, those that `prune` removes."""
    if not keep:
        return []
    staying = set(checkpoints[-keep:])
    if keep_every:
        staying |= {path for path in checkpoints if (step_of(path) or 0) % keep_every == 0}
    usable = next((path for path in reversed(checkpoints) if not problems(path, contents=False)), None)
    return [path for path in checkpoints if path not in staying and path != usable]


def _remove(checkpoint: Path, log: Callable[[str], None] | None) -> bool:
    try:
        with unless_read(checkpoint) as free:
            if free:
                remove(checkpoint)
            return free
    except OSError as error:
        if log:
            log(f"cannot remove old checkpoint {checkpoint}: {error.strerror}")
        return False
