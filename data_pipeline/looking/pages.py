"""What pages share: templates with their filters, the style sheet, and how numbers are written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_COLOURS = {"linguistic": "linguistic", "semantic": "semantic"}
_SPARE_COLOURS = ("extra-1", "extra-2", "extra-3", "extra-4")  # names of colours in the style sheet
_HERE = Path(__file__).parent / "page"


@dataclass(frozen=True)
class Tile:
    """One headline number with a line below it."""

    label: str
    value: str
    unit: str = ""
    note: str = ""
    good: bool = False


@dataclass(frozen=True)
class LeftOut:
    """How many things of one kind a build could not use, and the names of some."""

    name: str
    count: int
    examples: list[str]


def environment(*folders: Path) -> Environment:
    """Templates of `folders`, and the parts that all pages share. Everything is escaped; a name that a template is not
    given is an error."""
    made = Environment(
        loader=FileSystemLoader([*folders, _HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"embed": embed, "bytes": in_bytes, "clock": clock}
    made.globals |= {"style": page_file("style.css"), "samples_script": page_file("samples.js")}
    return made


def page_file(name: str, folder: Path = _HERE) -> Markup:
    """The text of a style sheet or script, to stand in a page as it is."""
    return Markup((folder / name).read_text(encoding="utf-8"))


def embed(value: Any) -> Markup:
    """JSON that cannot end the script element that holds it."""
    return Markup(json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"))


def left_out_kinds(told: Mapping[str, Any]) -> list[LeftOut]:
    """The kinds of a manifest's `left_out`, the most frequent first. What is not of that form is passed over."""
    kinds = []
    for name, found in told.items():
        if isinstance(found, Mapping) and isinstance(found.get("count"), int):
            examples = found.get("examples")
            kinds.append(
                LeftOut(str(name), found["count"], list(map(str, examples)) if isinstance(examples, list) else [])
            )
    return sorted(kinds, key=lambda kind: (-kind.count, kind.name))


def colours_of(codebooks: Sequence[str]) -> dict[str, str]:
    """The colour of each codebook, by its name in the style sheet: fixed for the known ones, in turn for others."""
    others = [name for name in codebooks if name not in _COLOURS]
    spare = {name: _SPARE_COLOURS[number % len(_SPARE_COLOURS)] for number, name in enumerate(others)}
    return {name: _COLOURS.get(name) or spare[name] for name in codebooks}


# --- numbers ----------------------------------------------------------------------------------------------------


def short(value: float) -> str:
    """A count in three digits: 1.23 M."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if letter == 'k' else size):.3g} {letter}"
    return f"{value:,.0f}"


def clock(seconds: float) -> str:
    """Seconds as 1:02:03 h or 2:03 min."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d} h" if hours else f"{minutes}:{rest:02d} min"


def in_bytes(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def number(value: float) -> str:
    """A measured value, in four digits at most."""
    if not math.isfinite(value):
        return "not finite"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == round(value) else f"{value:.4g}"
