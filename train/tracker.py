"""The experiment tracker: wandb, offline unless the config says otherwise. It never ends a run."""

from __future__ import annotations

import math
import secrets
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.schema import TrackerConfig

RUN_ID_FILE = "wandb/run-id.txt"
_TEMPORARY = "wandb/temporary"


class Tracker:
    """Sends records to wandb, with files under the run folder and one run id over all resumes.

    Whatever goes wrong in wandb (not installed, no network, full disk) is one line on stderr, and tracking is off
    from there on.
    """

    def __init__(self, config: TrackerConfig, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        """name: the run's. settings: the resolved config, kept beside the curves."""
        self._run: Any = None
        self._temporary = folder / _TEMPORARY
        if config.wandb == "disabled":
            return
        try:
            self._run = _start(config, folder, name, settings)
        except Exception as error:  # third-party code with errors of its own kind
            self._give_up(error)

    def log(self, record: Mapping[str, Any], step: int, prefix: str = "") -> None:
        """Send the finite numbers of a record, their names led by `prefix`; everything else stays in the files."""
        if self._run is None:
            return
        numbers = {
            prefix + key: value
            for key, value in record.items()
            if isinstance(value, (int, float)) and math.isfinite(value) and key != "step"
        }
        try:
            self._run.log(numbers, step=step)
        except Exception as error:  # as above
            self._give_up(error)

    def close(self) -> None:
        if self._run is None:
            return
        try:
            self._run.finish()
        except Exception as error:  # as above
            self._give_up(error)
        self._run = None
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"megaphone: wandb is off for this run: {reason}", file=sys.stderr, flush=True)


def _start(config: TrackerConfig, folder: Path, name: str, settings: Mapping[str, Any]) -> Any:
    # As it is imported, wandb makes temporary folders that it takes away at the end of an interpreter; a rank has none.
    (folder / _TEMPORARY).mkdir(parents=True, exist_ok=True)
    usual, tempfile.tempdir = tempfile.tempdir, str(folder / _TEMPORARY)
    try:
        import wandb
    finally:
        tempfile.tempdir = usual
    return wandb.init(
        project=config.project,
        name=name,
        id=_run_id(folder),
        resume="allow" if config.wandb == "online" else None,  # offline parts of one id join when they are synced
        dir=str(folder),
        mode="online" if config.wandb == "online" else "offline",
        config=dict(settings),
        settings=wandb.Settings(
            silent=True,
            console="off",
            init_timeout=30,
            disable_git=True,
            save_code=False,
            x_disable_meta=True,
        ),
    )


def _run_id(folder: Path) -> str:
    path = folder / RUN_ID_FILE
    if path.is_file() and (kept := path.read_text(encoding="utf-8").strip()):
        return kept
    path.parent.mkdir(parents=True, exist_ok=True)
    made = secrets.token_hex(4)
    path.write_text(made + "\n", encoding="utf-8")
    return made
