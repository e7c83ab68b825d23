"""The run folder before training: its resolved config, its environment, and whether it may be gone on with."""

from __future__ import annotations

import json
import os
import time
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from configs.compose import load_config, to_yaml
from configs.schema import Config, Schedule, StageKind
from launch.environment import describe
from runtime.exits import BadInput
from runtime.run_files import CONFIG_FILE, ENVIRONMENT_FILE, METRICS_FILE, RESULTS_FILE

STEPPING = (StageKind.train, StageKind.decoder)  # kinds of stages that are done at their last step

# What a run may be resumed with a different value of: where and how it runs, and what it writes down. Everything else
# decides what is learned, and then the curve would no longer be that of one config.
FREE_KEYS = (
    "launcher",
    "cluster",
    "run",
    "parallel",
    "engine",
    "tracker",
    "observe",
    "notify",
    "resilience",  # a run that stopped at an incident goes on with another policy
    "export",
    "evaluation",
    "scale",
    "corpus.folder",
    "corpus.workers",
    "loader.prefetch",
    "loader.workers",
    "loader.damaged_share",
    "train.micro_batch",
    "train.log_samples",
    "train.validate_every",
    "checkpoint",
)


def prepare(config: Config) -> Path:
    """Write config.yaml and environment.json into the run folder; returns the config file.

    A folder that has progress is resumed: raises BadInput where its saved config differs in a key that changes what is
    learned. `train.steps` may change under a constant schedule, which does not look ahead.
    """
    folder = Path(config.run.folder)
    refuse_other_run(config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / ENVIRONMENT_FILE, json.dumps(describe(), indent=2) + "\n")
        _write(folder / CONFIG_FILE, to_yaml(config))
    except OSError as error:
        raise BadInput(f"run.folder={folder}: {error.strerror or error}") from error
    return folder / CONFIG_FILE


def wait_for_prepared(config: Config, timeout: float = 120.0) -> Path:
    """The config file that rank 0 prepares from the same config. Raises BadInput if it does not come."""
    file = Path(config.run.folder) / CONFIG_FILE
    wanted = to_yaml(config)
    deadline = time.monotonic() + timeout
    while not (file.is_file() and file.read_text(encoding="utf-8") == wanted):
        if time.monotonic() > deadline:
            raise BadInput(f"{file}: rank 0 has not written this rank's config in {timeout:g} s; is the folder shared?")
        time.sleep(0.2)
    return file


def refuse_other_run(config: Config) -> None:
    """Raise BadInput where the run folder holds the progress of a run with a different config."""
    folder = Path(config.run.folder)
    if not (folder / CONFIG_FILE).is_file() or not _has_progress(folder):
        return
    changed = differences(load_config(folder / CONFIG_FILE), config)
    if changed:
        shown = ", ".join(f"{key} ({old} -> {new})" for key, (old, new) in changed.items())
        raise BadInput(f"{folder} holds a run with another config: {shown}; undo that, or give another run.name")


def differences(saved: Config, wanted: Config) -> dict[str, tuple[Any, Any]]:
    """Keys that change what is learned and differ between two configs, with both values."""
    free = (*FREE_KEYS, "train.steps") if wanted.optimizer.schedule is Schedule.constant else FREE_KEYS
    old, new = _leaves(saved), _leaves(wanted)
    return {
        key: (old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not any(key == name or key.startswith(f"{name}.") for name in free)
    }


def load_run(folder: Path) -> Config:
    """The config of a run folder. Raises BadInput where it is not one."""
    if not (folder / CONFIG_FILE).is_file():
        raise BadInput(f"{folder} is no run folder: it has no {CONFIG_FILE}")
    return load_config(folder / CONFIG_FILE)


def is_finished(config: Config) -> bool:
    """Whether the run folder holds this stage, done: one that trains to its last step or to the end of its data."""
    try:
        results = json.loads((Path(config.run.folder) / RESULTS_FILE).read_text(encoding="utf-8"))
        if config.stage.kind not in STEPPING:
            return bool(results["status"] == "finished")
        if results["status"] == "exhausted":
            return bool(results["step"] < config.train.steps)
        return results["status"] == "finished" and results["step"] == config.train.steps
    except (OSError, ValueError, KeyError, TypeError):
        return False  # nothing there to trust: training looks at the checkpoints and knows better


def _has_progress(folder: Path) -> bool:
    checkpoints = folder / "checkpoints"
    return (folder / METRICS_FILE).is_file() or (checkpoints.is_dir() and any(checkpoints.iterdir()))


def _leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    items = [(item.name, getattr(node, item.name)) for item in fields(node)] if is_dataclass(node) else node.items()
    leaves: dict[str, Any] = {}
    for name, value in items:
        if is_dataclass(value) or (isinstance(value, dict) and value):
            leaves |= _leaves(value, f"{prefix}{name}.")
        else:
            leaves[prefix + str(name)] = getattr(value, "value", value)
    return leaves


def _write(file: Path, text: str) -> None:
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, file)
