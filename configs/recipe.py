"""A recipe file: what its stages have in common, what its scales change, and its stages in order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from runtime.exits import BadInput

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
RECIPE_FILE = "recipe.yaml"


@dataclass(frozen=True)
class Recipe:
    """A recipe as written. Settings are nested mappings; dotted keys and group choices are not yet looked into."""

    name: str
    file: str  # as shown in messages
    summary: str
    common: dict[str, Any]
    scales: dict[str, dict[str, Any]]
    stages: dict[str, dict[str, Any]]  # in order
    at_scale: dict[str, dict[str, dict[str, Any]]]  # what a scale changes in single stages: its own `stages`

    def pick_scale(self, scale: str | None) -> str | None:
        """The scale to use. None where the recipe has no scales; BadInput where one is needed or unknown."""
        names = list(self.scales)
        if scale is None and len(names) <= 1:
            return names[0] if names else None
        return _pick("scale", scale, names, self.name)

    def pick_stage(self, stage: str | None) -> str:
        """The stage to use; may be left out where there is just one. BadInput where it is needed or unknown."""
        names = list(self.stages)
        return names[0] if stage is None and len(names) == 1 else _pick("stage", stage, names, self.name)


def load_recipe(name: str) -> Recipe:
    """Read recipes/<name>/recipe.yaml, or <name>/recipe.yaml where `name` is the path of a folder.

    Raises BadInput where there is no such recipe or its file is not a recipe.
    """
    folder = RECIPES / name
    if not (folder / RECIPE_FILE).is_file():
        folder = Path(name)
    file = folder / RECIPE_FILE
    if not file.is_file():
        known = sorted(found.parent.name for found in RECIPES.glob(f"*/{RECIPE_FILE}"))
        close = get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}, or give a folder"
        raise BadInput(f"recipe={name}: no such recipe; {hint}")
    shown = f"recipes/{name}/{RECIPE_FILE}" if folder == RECIPES / name else str(file)
    return _read(file, file.stat().st_mtime_ns, folder.resolve().name, shown)


@lru_cache(4)
def _read(file: Path, changed: int, name: str, shown: str) -> Recipe:
    """All stages of a command ask for the same file, which is read again where it has `changed`."""
    try:
        written = OmegaConf.to_container(OmegaConf.load(file))
    except (OmegaConfBaseException, YAMLError, OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{shown}: not readable as YAML: {' '.join(str(error).split())}") from error
    return _recipe(written, name, shown)


def _recipe(written: Any, default_name: str, shown: str) -> Recipe:
    if not isinstance(written, dict):
        raise BadInput(f"{shown}: a recipe is a mapping with name, summary, common, scales and stages")
    known = [item.name for item in fields(Recipe) if item.name not in ("file", "at_scale")]
    for key in written:
        if key not in known:
            close = get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"a recipe has {', '.join(known)}"
            raise BadInput(f"{shown}: {key}: no such key; {hint}")
    scales = _mapping(written.get("scales"), "scales", shown)
    stages = _mapping(written.get("stages"), "stages", shown)
    if not stages:
        raise BadInput(f"{shown}: a recipe needs at least one stage under stages")
    settings = {key: _mapping(value, f"scales.{key}", shown) for key, value in scales.items()}
    at_scale = {
        key: _of_stages(value.pop("stages", None), stages, f"scales.{key}.stages", shown)
        for key, value in settings.items()
    }
    return Recipe(
        name=str(written.get("name", default_name)),
        file=shown,
        summary=str(written.get("summary", "")).strip(),
        common=_mapping(written.get("common"), "common", shown),
        scales=settings,
        stages={key: _mapping(value, f"stages.{key}", shown) for key, value in stages.items()},
        at_scale=at_scale,
    )


def _of_stages(written: Any, stages: Iterable[str], where: str, shown: str) -> dict[str, dict[str, Any]]:
    found = _mapping(written, where, shown)
    for stage in found:
        if stage not in stages:
            raise BadInput(f"{shown}: {where}.{stage}: no such stage; there are {', '.join(stages)}")
    return {stage: _mapping(value, f"{where}.{stage}", shown) for stage, value in found.items()}


def _mapping(value: Any, where: str, shown: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadInput(f"{shown}: {where} is not a mapping")
    return {str(key): inner for key, inner in value.items()}


def _pick(kind: str, chosen: str | None, names: list[str], recipe: str) -> str:
    if chosen is None:
        raise BadInput(f"recipe {recipe}: choose with {kind}=: {', '.join(names)}")
    if chosen not in names:
        close = get_close_matches(chosen, names, n=1)
        there = f"it has {', '.join(names)}" if names else f"it has no {kind}s"
        hint = f"did you mean {close[0]}?" if close else there
        raise BadInput(f"recipe {recipe}: no {kind} {chosen}; {hint}")
    return chosen
