"""The page of an evaluation: figures with their ranges, and what was heard, said and answered, with players."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.looking.pages import Tile, environment, number
from data_pipeline.looking.samples import data_uri, spread
from data_pipeline.sources.keys import safe_key
from runtime import records
from runtime.exits import BadInput
from train.evaluation.figures import PERCENT
from train.evaluation.run import EVALUATION_FILE, ITEMS, SOUNDS, place_name

PAGE_FILE = "evaluation.html"
MOST_SOUND = 6_000_000  # bytes of all players together, before base64
_SHOWN_WITHOUT_SOUND = 4  # items of a measurement that has none
_HEADLINES = ("wer", "accuracy", "perplexity", "similarity", "dnsmos_ovrl", "audio")  # figures that get tiles
_MOST_TILES = 8
_TEXTS = ("text", "heard", "recording_heard", "reply", "answers")
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Shown:
    """One item: texts and numbers by name, and players (name, data URI)."""

    key: str
    texts: list[tuple[str, str]]
    facts: list[tuple[str, str]]
    players: list[tuple[str, str]]


@dataclass(frozen=True)
class Section:
    """One measurement: a table with a row a set, and items of each set."""

    name: str
    kind: str
    head: list[str]
    rows: list[list[str]]
    items: list[tuple[str, list[Shown]]] = field(default_factory=list)


def write_page(folder: Path) -> Path:
    """Write `evaluation.html` from what is in a run folder; returns its path. Raises BadInput where nothing was
    measured there."""
    file = folder / EVALUATION_FILE
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{file} cannot be read: {error}") from error
    page = (
        environment(_HERE)
        .get_template("template.html")
        .render(told=told, tiles=_tiles(told["measured"]), sections=_sections(folder, told["measured"]))
    )
    path = folder / PAGE_FILE
    partial = path.with_name(f".{PAGE_FILE}.partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)
    return path


def _tiles(measured: list[dict[str, Any]]) -> list[Tile]:
    tiles = []
    for one in measured:
        name = next((name for name in _HEADLINES if name in one["figures"]), None)
        if name is not None:
            figure = one["figures"][name]
            label = f"{one['measurement']}, {_said(name)}"
            tiles.append(Tile(label, number(figure["value"]), figure["unit"], f"{one['set']}, {one['items']:,} items"))
    return tiles[:_MOST_TILES]


def _sections(folder: Path, measured: list[dict[str, Any]]) -> list[Section]:
    sections: dict[str, Section] = {}
    budget = MOST_SOUND
    by_name: dict[str, list[dict[str, Any]]] = {}
    for one in measured:
        by_name.setdefault(one["measurement"], []).append(one)
    for name, held in by_name.items():
        figures = list(dict.fromkeys(figure for one in held for figure in one["figures"]))
        head = ["Set", "Items", *(_said(figure) for figure in figures)]
        rows = [
            [one["set"], _items_of(one), *(_cell(one["figures"].get(figure)) for figure in figures)] for one in held
        ]
        sections[name] = Section(name, held[0]["kind"], head, rows)
        for one in held:
            shown, budget = _shown(folder, place_name(name, one["set"]), budget)
            if shown:
                sections[name].items.append((one["set"], shown))
    return list(sections.values())


def _items_of(one: dict[str, Any]) -> str:
    left_out = sum(one["left_out"].values())
    return f"{one['items']:,} of {one['of']:,}" + (f", {left_out:,} left out" if left_out else "")


def _cell(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return ""
    unit = f" {PERCENT}" if figure["unit"] == PERCENT else ""
    span = "" if figure["low"] is None else f" [{number(figure['low'])} – {number(figure['high'])}]"
    return f"{number(figure['value'])}{unit}{span}"


def _said(name: str) -> str:
    return name.upper() if name in ("wer", "cer") else name.replace("_", " ")


def _shown(folder: Path, place: str, budget: int) -> tuple[list[Shown], int]:
    """Items of a measurement and set: those with sounds, else a few; and how many bytes of sound may still be shown."""
    lines = [line for line in records.read(folder / ITEMS / f"{place}.jsonl") if "record" in line]
    sounds: dict[str, list[Path]] = {}
    for file in sorted((folder / SOUNDS / place).glob("*.wav")):
        sounds.setdefault(file.name.split(".")[0], []).append(file)
    chosen = [line for line in lines if safe_key(line["key"]) in sounds] or spread(lines, _SHOWN_WITHOUT_SOUND)
    shown = []
    for line in chosen:
        players = []
        for file in sounds.get(safe_key(line["key"]), []):
            if (size := file.stat().st_size) <= budget:
                budget -= size
                players.append((file.name.split(".")[1], data_uri("audio/wav", file.read_bytes())))
        if item := _item(line["key"], line["record"], players):
            shown.append(item)
    return shown, budget


def _item(key: str, record: dict[str, Any], players: list[tuple[str, str]]) -> Shown | None:
    texts = [(name, _text(record[name])) for name in _TEXTS if record.get(name)]
    facts = [
        (name, str(value).lower() if isinstance(value, bool) else number(float(value)))
        for name, value in record.items()
        if isinstance(value, bool | int | float)
    ]
    return Shown(key, texts, facts, players) if texts or players else None


def _text(value: Any) -> str:
    return "; ".join(map(str, value)) if isinstance(value, list) else str(value)
