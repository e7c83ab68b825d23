"""What a run folder holds, read for the report. Whatever is not there is named, never an error."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from checkpoints.atomic import PARTIAL, REMOVED
from checkpoints.manifest import MANIFEST_FILE
from runtime import records
from runtime.exits import BadInput
from runtime.run_files import CONFIG_FILE, ENVIRONMENT_FILE, METRICS_FILE, RESULTS_FILE, STARTS_FILE, VALIDATION_FILE
from train.metrics import Record, read_metrics, read_validation
from train.resilience.stragglers import SlowTime, slow_times


@dataclass(frozen=True)
class Stored:
    """A checkpoint or export: its path in the run folder, bytes, and whether it is complete."""

    name: str
    size: int
    complete: bool


@dataclass(frozen=True)
class RunFolder:
    """Contents of a run folder. `missing` names the files that are absent or unreadable."""

    folder: Path
    config_text: str
    config: dict[str, Any]
    environment: dict[str, Any]
    results: dict[str, Any]
    metrics: list[Record]
    validation: list[Record]
    checkpoints: list[Stored]
    exports: list[Stored]
    slow_times: list[SlowTime]
    starts: list[Record]
    missing: list[str] = field(default_factory=list)

    def setting(self, key: str, default: Any = None) -> Any:
        """A config value by its dotted key."""
        value: Any = self.config
        for part in key.split("."):
            if not isinstance(value, dict) or value.get(part) is None:
                return default
            value = value[part]
        return value


def read_run_folder(folder: Path) -> RunFolder:
    """Read everything a report shows. Raises BadInput if `folder` is no run folder at all."""
    if not folder.is_dir():
        raise BadInput(f"no run folder at {folder}: train first, or name the folder of another run")
    known = (CONFIG_FILE, METRICS_FILE, RESULTS_FILE)
    if not any((folder / name).is_file() for name in known):
        raise BadInput(f"{folder} is not a run folder: it has none of {', '.join(known)}")
    missing: list[str] = []
    config_text = _text(folder / CONFIG_FILE, missing)
    metrics, validation = read_metrics(folder), read_validation(folder)
    missing += [name for name, records in ((METRICS_FILE, metrics), (VALIDATION_FILE, validation)) if not records]
    return RunFolder(
        folder=folder,
        config_text=config_text,
        config=_config(config_text, missing),
        environment=_json(folder / ENVIRONMENT_FILE, missing),
        results=_json(folder / RESULTS_FILE, missing),
        metrics=metrics,
        validation=validation,
        checkpoints=_checkpoints(folder),
        exports=_exports(folder),
        slow_times=slow_times(folder),
        starts=records.read(folder / STARTS_FILE),
        missing=missing,
    )


def _text(path: Path, missing: list[str]) -> str:
    if not path.is_file():
        missing.append(path.name)
        return ""
    return path.read_text(encoding="utf-8", errors="replace")


def _config(text: str, missing: list[str]) -> dict[str, Any]:
    try:
        container = OmegaConf.to_container(OmegaConf.create(text), resolve=True) if text else {}
    except (OmegaConfBaseException, YAMLError, ValueError):
        missing.append(f"{CONFIG_FILE} (unreadable)")
        return {}
    return {str(key): value for key, value in container.items()} if isinstance(container, dict) else {}


def _json(path: Path, missing: list[str]) -> dict[str, Any]:
    text = _text(path, missing)
    try:
        content = json.loads(text) if text else {}
    except ValueError:
        content = None
    if isinstance(content, dict):
        return content
    missing.append(f"{path.name} (unreadable)")
    return {}


def _checkpoints(folder: Path) -> list[Stored]:
    found = sorted(path for path in (folder / "checkpoints").glob("step-*") if path.is_dir())
    return [Stored(f"checkpoints/{path.name}", _size(path), _is_complete(path)) for path in found]


def _is_complete(checkpoint: Path) -> bool:
    return (checkpoint / MANIFEST_FILE).is_file() and not checkpoint.name.endswith((PARTIAL, REMOVED))


def _exports(folder: Path) -> list[Stored]:
    found = sorted(path for path in (folder / "export").glob("*") if path.is_dir())
    return [Stored(f"export/{path.name}", _size(path), (path / "config.json").is_file()) for path in found]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
