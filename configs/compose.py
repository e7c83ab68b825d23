"""From a recipe, a scale, a stage and a command line to one typed, resolved Config.

Levels, weakest first: configs/config.yaml, the recipe's `common`, its `scales.<scale>`, its `stages.<stage>`, the
scale's own `scales.<scale>.stages.<stage>`, the command line. Group choices (`backbone: tiny`, or a YAML file of one's
own, `cluster: site.yaml`) of all levels are settled first, later levels winning; values (`train.steps: 300`) go on top
of the chosen groups in the same order. So the order of keys within a level, and of words on a command line, changes
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import MISSING, dataclass, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from configs.recipe import Recipe, load_recipe
from configs.references import references
from configs.schema import Config
from runtime.exits import BadInput

CONFIGS = Path(__file__).resolve().parent
COMMAND_LINE = "command line"
_SECTIONS = {item.name: item.default_factory for item in fields(Config) if item.default_factory is not MISSING}


@dataclass
class Level:
    """One layer of settings and its origin; `values` are leaves by path, `removed` are entries of dictionaries."""

    origin: str
    choices: dict[str, str]
    values: dict[tuple[str, ...], Any]
    removed: list[tuple[str, ...]]


def groups() -> dict[str, list[str]]:
    """Names of the config groups, and the choices that each has."""
    folders = sorted(folder for folder in CONFIGS.iterdir() if folder.is_dir() and any(folder.glob("*.yaml")))
    return {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}


def compose_stage(recipe: str | None, scale: str | None, stage: str | None, overrides: list[str]) -> Config:
    """The resolved config of one stage of a recipe, or of the command line alone where `recipe` is None.

    `recipe` is a name under recipes/ or a folder; `scale` may be left out where the recipe has none, `stage` where it
    has just one. `overrides` are `key=value` words in Hydra's grammar; `~key` removes an entry of a dictionary.
    Raises BadInput with one line for anything unknown, mistyped or missing.
    """
    parsed = load_recipe(recipe) if recipe is not None else None
    levels, stage = _recipe_levels(parsed, scale, stage)
    levels.append(_command_line_level(overrides))
    chosen = _choices(levels)
    config = _compose({group: choice for group, choice in chosen.items() if not _is_file(choice)})
    for level in [*(_file_level(*item) for item in sorted(chosen.items()) if _is_file(item[1])), *levels]:
        _apply(config, level)
    if parsed is not None:
        _name_run(config, parsed, scale, cast(str, stage))
    elif stage is not None:
        config.stage.name = stage
    resolved = _typed(config)
    _check_earlier(resolved, parsed)
    return resolved


def load_config(file: Path) -> Config:
    """Read a resolved config that `save_config` wrote. Raises BadInput where it is missing or not valid."""
    try:
        written = OmegaConf.load(file)
        config = _empty()
        config.merge_with(written)
        return _typed(config)
    except OSError as error:
        raise BadInput(f"{file}: {error.strerror or error}") from error
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise BadInput(f"{file}: {_first_line(error)}") from error


def to_yaml(config: Config) -> str:
    """The YAML text of a resolved config, keys in the schema's order."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


# --- levels -------------------------------------------------------------------------------------------------------


def _recipe_levels(recipe: Recipe | None, scale: str | None, stage: str | None) -> tuple[list[Level], str | None]:
    if recipe is None:
        if scale is not None:
            raise BadInput("scale= needs recipe=: scales belong to recipes")
        return [], stage
    stage = recipe.pick_stage(stage)
    levels = [_level(f"{recipe.file} common", recipe.common)]
    name = recipe.pick_scale(scale)
    if name is not None:
        levels.append(_level(f"{recipe.file} scales.{name}", recipe.scales[name]))
    levels.append(_level(f"{recipe.file} stages.{stage}", recipe.stages[stage]))
    if name is not None and stage in recipe.at_scale[name]:
        levels.append(_level(f"{recipe.file} scales.{name}.stages.{stage}", recipe.at_scale[name][stage]))
    return levels, stage


def _level(origin: str, settings: dict[str, Any]) -> Level:
    level = Level(origin, {}, {}, [])
    known = groups()
    for key, value in settings.items():
        if key in known and isinstance(value, str):
            level.choices[key] = value
        else:
            _flatten(level, tuple(str(key).split(".")), value)
    return level


def _flatten(level: Level, path: tuple[str, ...], value: Any) -> None:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            _flatten(level, (*path, *str(key).split(".")), inner)
    elif path in level.values:
        raise BadInput(f"{'.'.join(path)} is given twice ({level.origin})")
    else:
        level.values[path] = value


def _command_line_level(overrides: list[str]) -> Level:
    level = Level(COMMAND_LINE, {}, {}, [])
    known = groups()
    for word in overrides:
        try:
            override = OverridesParser.create().parse_override(word)
        except HydraException as error:
            raise BadInput(f"{word!r} is not of the form key=value ({COMMAND_LINE})") from error
        if not override.key_or_group:
            raise BadInput(f"{word!r} is not of the form key=value ({COMMAND_LINE})")
        if override.is_sweep_override():
            raise BadInput(f"{word!r}: one run takes one value, not a sweep; quote it if it is text ({COMMAND_LINE})")
        key, value = override.key_or_group, override.value()
        if override.is_delete():
            level.removed.append(tuple(key.split(".")))
        elif key in known and isinstance(value, str):
            if level.choices.setdefault(key, value) != value:
                raise BadInput(f"{key} is given twice ({COMMAND_LINE})")
        else:
            _flatten(level, tuple(key.split(".")), value)
    return level


def _choices(levels: list[Level]) -> dict[str, str]:
    known = groups()
    chosen: dict[str, str] = {}
    for level in levels:
        for group, choice in level.choices.items():
            if _is_file(choice):
                if not Path(choice).is_file():
                    raise BadInput(f"{group}={choice}: no such file ({level.origin})")
            elif choice not in known[group]:
                hint = _suggest(choice, known[group]) or f"; there are {', '.join(known[group])}"
                raise BadInput(f"{group}={choice}: no such {group}{hint} ({level.origin})")
            chosen[group] = choice
    return chosen


def _is_file(choice: str) -> bool:
    """Whether a group's choice is a YAML file of the user's own rather than one of configs/<group>."""
    return choice.endswith(".yaml")


def _file_level(group: str, choice: str) -> Level:
    """The keys of a group's section, as a file outside configs/ sets them."""
    try:
        written = OmegaConf.to_container(OmegaConf.load(choice))
    except (OmegaConfBaseException, YAMLError, OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{group}={choice}: not readable as YAML: {_first_line(error)}") from error
    if not isinstance(written, dict):
        raise BadInput(f"{group}={choice}: not a mapping of keys to values")
    return _level(choice, {group: written})


# --- composing ----------------------------------------------------------------------------------------------------


def _compose(chosen: dict[str, str]) -> DictConfig:
    _store_schema()
    try:
        with initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
            composed = compose("config", overrides=[f"{group}={choice}" for group, choice in sorted(chosen.items())])
    except (HydraException, OmegaConfBaseException) as error:
        raise BadInput(f"configs/: {_first_line(error.__cause__ or error)}") from error
    OmegaConf.set_struct(composed, None)  # dictionary fields take new entries; dataclass fields stay closed
    config = _empty()
    config.merge_with(composed)
    return config


@cache
def _store_schema() -> None:
    ConfigStore.instance().store(name="schema", node=Config)


def _empty() -> DictConfig:
    """The schema with its defaults; reading all of its dataclasses once is enough."""
    return deepcopy(_schema())


@cache
def _schema() -> DictConfig:
    return OmegaConf.structured(Config)


def _apply(config: DictConfig, level: Level) -> None:
    for path in level.removed:
        _remove(config, path, level.origin)
    for path, value in sorted(level.values.items()):
        if len(path) == 1 and path[0] in _SECTIONS and not isinstance(value, dict):
            raise BadInput(f"{path[0]}={_shown(value)}: {_section_hint(path[0])} ({level.origin})")
        nested: Any = value
        for key in reversed(path):
            nested = {key: nested}
        try:
            config.merge_with(nested)
        except ConfigKeyError as error:
            raise BadInput(_unknown_key(config, str(error.full_key or ".".join(path)), level.origin)) from error
        except (OmegaConfBaseException, ValueError, TypeError) as error:
            shown = ".".join(path)
            raise BadInput(f"{shown}={_shown(value)}: {_type_hint(error)} ({level.origin})") from error


def _remove(config: DictConfig, path: tuple[str, ...], origin: str) -> None:
    key = ".".join(path)
    parent = OmegaConf.select(config, ".".join(path[:-1])) if len(path) > 1 else None
    if not isinstance(parent, DictConfig) or is_dataclass(OmegaConf.get_type(parent)):
        raise BadInput(f"~{key}: only an entry of a dictionary can be removed, such as ~mixture.sources.asr ({origin})")
    if path[-1] not in parent:
        raise BadInput(f"~{key}: there is no such entry{_suggest(path[-1], map(str, parent))} ({origin})")
    del parent[path[-1]]


def _name_run(config: DictConfig, recipe: Recipe, scale: str | None, stage: str) -> None:
    config.recipe = recipe.name
    config.scale = recipe.pick_scale(scale)
    config.stage.name = stage
    if OmegaConf.is_missing(config.run, "name"):
        config.run.name = recipe.name
    if len(recipe.stages) > 1:  # a stage of several has a run folder of its own inside the run's
        folder = OmegaConf.to_container(config.run, resolve=False)["folder"]  # type: ignore[call-overload, index]
        config.run.folder = f"{folder}/{stage}"


def _typed(config: DictConfig) -> Config:
    try:
        OmegaConf.resolve(config)
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise BadInput(_missing(missing))
        resolved = cast(Config, OmegaConf.to_object(config))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        raise BadInput(f"{key or 'config'}: {_first_line(error)}") from error
    _sort_entries(resolved)
    return resolved


def _sort_entries(node: Any) -> None:
    """Put dictionary fields in the order of their keys: the order in which a YAML lists them means nothing."""
    for item in fields(node):
        value = getattr(node, item.name)
        if isinstance(value, dict):
            value = dict(sorted(value.items()))
            setattr(node, item.name, value)
        for inner in value.values() if isinstance(value, dict) else [value]:
            if is_dataclass(inner):
                _sort_entries(inner)


def _check_earlier(config: Config, recipe: Recipe | None) -> None:
    """Weights come from the backbone, an earlier stage of the recipe, or a checkpoint folder that is there; a corpus
    that is named by a stage, from an earlier one."""
    source = config.stage.weights
    names = list(recipe.stages) if recipe is not None else []
    earlier = names[: names.index(config.stage.name)] if config.stage.name in names else []
    if source != "backbone" and source not in earlier and not Path(source).is_dir():
        known = ", ".join(["backbone", *earlier])
        raise BadInput(f"stage.weights={source}: neither {known} nor a checkpoint folder that is there")
    averaged = ((f"merge.weights.{stage}", stage) for stage in config.merge.weights)
    for option, stage in (*((f"{option}=stage:{stage}", stage) for option, stage in references(config)), *averaged):
        if stage not in earlier:
            known = f"there are {', '.join(earlier)}" if earlier else "there is none"
            raise BadInput(f"{option}: no earlier stage of that name; {known}")


# --- messages -----------------------------------------------------------------------------------------------------


def _suggest(word: str, choices: Iterable[str]) -> str:
    close = get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _unknown_key(config: DictConfig, key: str, origin: str) -> str:
    parent, _, last = key.rpartition(".")
    node = OmegaConf.select(config, parent, throw_on_missing=False) if parent else config
    siblings = [str(name) for name in node] if isinstance(node, DictConfig) else []
    elsewhere = [path for path in _leaf_paths(Config) if path.rpartition(".")[2] == last]
    close = get_close_matches(last, siblings, n=1, cutoff=0.5)
    likely = elsewhere or [f"{parent}.{name}" if parent else name for name in close]
    hint = f"; did you mean {' or '.join(likely)}?" if likely else ""
    if not hint and siblings:
        hint = f"; {parent or 'the config'} has {', '.join(siblings)}"
    return f"{key}: no such key{hint} ({origin})"


def _section_hint(section: str) -> str:
    choices = groups().get(section)
    if choices:
        return f"choose one of {', '.join(choices)}, or set its keys, such as {section}.name"
    first = next(item.name for item in fields(getattr(Config(), section)))
    return f"{section} is a section; set its keys, such as {section}.{first}"


def _leaf_paths(schema: type, prefix: str = "") -> list[str]:
    config = OmegaConf.structured(schema)
    paths: list[str] = []
    for item in fields(schema):
        kind = OmegaConf.get_type(config, item.name)
        if kind is not None and is_dataclass(kind):
            paths += _leaf_paths(cast(type, kind), f"{prefix}{item.name}.")
        else:
            paths.append(prefix + item.name)
    return paths


def _missing(keys: list[str]) -> str:
    known = groups()
    for group in sorted({key.partition(".")[0] for key in keys}):
        if f"{group}.name" in keys and group in known:
            return f"no {group} is chosen: give {group}={'|'.join(known[group])} (or a recipe)"
    return f"no value for {', '.join(keys)}"


def _type_hint(error: BaseException) -> str:
    line = _first_line(error)
    return "it has keys of its own; set those" if line.startswith("Merge error") else line


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
