"""The model that a stage of kind generate takes: the export of an earlier stage of its recipe, or one in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from configs.schema import Config
from data_pipeline.codecs.weights import weights_identity
from runtime.exits import BadInput
from runtime.run_files import EXPORT


def export_of(config: Config) -> Path:
    """Raises BadInput where `stage.weights` leads to no export."""
    named = config.stage.weights
    folders = [Path(config.run.folder).parent / named / EXPORT, Path(named) / EXPORT, Path(named)]
    for folder in folders:
        if (folder / "config.json").is_file():
            return folder
    raise BadInput(
        f"stage.weights={named}: no export in {folders[0]}, and {named} is none either; train that stage first"
    )


def described(config: Config, export: Path) -> dict[str, Any]:
    """Whose words they are, JSON-ready: where the model came from, and hashes of its files."""
    return {"model": config.stage.weights, "files": weights_identity(str(export), "lm")}
