"""Which state of the source tree this is."""

from __future__ import annotations

import subprocess
from pathlib import Path


def commit() -> str | None:
    """Commit of the source tree, with `+changes` where it has been edited since; None outside a repository."""
    tree = Path(__file__).resolve().parent.parent
    try:
        found = _git(tree, "rev-parse", "HEAD")
        return found + ("+changes" if _git(tree, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(tree: Path, *arguments: str) -> str:
    command = ["git", "-C", str(tree), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
