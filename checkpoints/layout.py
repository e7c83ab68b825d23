"""Where a native checkpoint keeps what; see `checkpoints.store`."""

from __future__ import annotations

import re
from pathlib import Path

from checkpoints.manifest import MANIFEST_FILE

TENSORS = "tensors"
STATE_FILE = "state.json"
_STEP = re.compile(r"step-(\d{8,})")


def step_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"step-{step:08d}"


def step_of(path: Path) -> int | None:
    """The step that a checkpoint's name says; None where it is no such name."""
    match = _STEP.fullmatch(path.name)
    return int(match[1]) if match else None


def step_folders(folder: Path) -> list[Path]:
    """Folders named after a step, by step, whatever is in them."""
    if not folder.is_dir():
        return []
    steps = [(step, path) for path in folder.iterdir() if (step := step_of(path)) is not None]
    return [path for _, path in sorted(steps) if path.is_dir() and not path.is_symlink()]


def complete_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run that say they are complete, oldest first. Their contents are not verified."""
    return [path for path in step_folders(folder) if (path / MANIFEST_FILE).is_file()]
