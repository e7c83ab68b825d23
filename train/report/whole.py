"""One page for a recipe's whole run: a section for every stage, in order, with what it changed and what it made."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.looking.pages import clock, environment, number
from data_pipeline.looking.report import Stage, stages_of
from data_pipeline.quality.funnel import funnel_in
from runtime.run_files import FUNNEL, MEASURED, REPORT_FILE, SOUNDS
from train.report.page import status_of, terms_before_and_after
from train.report.run_folder import RunFolder, read_run_folder

MOST_SOUNDS = 8  # of one stage: a page is opened, not downloaded
OWN = (REPORT_FILE, "evaluation.html")  # a stage's own page, by what its kind is
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Sound:
    """What is said, and the file as a data URL."""

    said: str
    url: str


@dataclass(frozen=True)
class Section:
    """What the page shows of one stage. terms: name, before, after, and the change in percent, as text. funnel: a
    condition, and what each clause of it would leave of what was made."""

    name: str
    kind: str
    origin: str
    status: Mapping[str, str]
    facts: list[tuple[str, str]]
    terms: list[tuple[str, str, str, str]]
    measured: list[tuple[str, str]]
    funnel: tuple[str, list[Stage]] | None
    sounds: list[Sound]
    report: str


def write_whole_report(folder: Path, stages: Sequence[Path]) -> Path:
    """Write `report.html` into `folder`, about the run folders `stages` inside it; returns its path.

    A stage that has not begun is left out. Raises BadInput where one of them is no run folder.
    """
    sections = [_section(read_run_folder(stage), folder) for stage in stages if stage.is_dir()]
    page = environment(_HERE).get_template("whole.html").render(title=folder.resolve().name, sections=sections)
    path = folder / REPORT_FILE
    partial = path.with_name(REPORT_FILE + ".partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)
    return path


def _section(run: RunFolder, whole: Path) -> Section:
    results = run.results
    before, after = terms_before_and_after(run)
    kind = str(run.setting("stage.kind", "train"))
    weights = str(run.setting("stage.weights", "backbone"))
    seconds = results.get("wall_seconds")
    facts = [
        ("objective", str(run.setting("stage.objective", "")) if kind == "train" else ""),
        ("steps", f"{results['step']:,}" if results.get("steps") else ""),
        ("corpus", str(run.setting("corpus.name", ""))),
        ("mixture", str(run.setting("mixture.name", "")) if results.get("steps") else ""),
        ("time since its last start", clock(seconds) if isinstance(seconds, (int, float)) else ""),
    ]
    own = next((run.folder / name for name in OWN if (run.folder / name).is_file()), None)
    return Section(
        name=str(run.setting("stage.name", run.folder.name)),
        kind=kind,
        origin=f"begins with {weights}" if kind == "train" else f"uses {weights}",
        status=status_of(run),
        facts=[(name, value) for name, value in facts if value],
        terms=[
            (name, number(before[name]), number(value), _change(before[name], value))
            for name, value in after.items()
            if name in before
        ],
        measured=[(name, _figure(value)) for name, value in _mapping(results.get(MEASURED)).items()],
        funnel=_funnel(_mapping(results.get(FUNNEL))),
        sounds=_sounds(run, _mapping(results.get(SOUNDS))),
        report=os.path.relpath(own, whole) if own else "",
    )


def _sounds(run: RunFolder, told: Mapping[str, Any]) -> list[Sound]:
    found = []
    for said, name in list(told.items())[:MOST_SOUNDS]:
        file = run.folder / str(name)
        if file.is_file():
            content = base64.b64encode(file.read_bytes()).decode()
            found.append(Sound(said, f"data:audio/{file.suffix.removeprefix('.')};base64,{content}"))
    return found


def _funnel(told: Mapping[str, Any]) -> tuple[str, list[Stage]] | None:
    try:
        return (str(told["expression"]), stages_of(funnel_in(told))) if told else None
    except (TypeError, KeyError, AttributeError, IndexError):
        return None  # of another version


def _change(before: float, after: float) -> str:
    return f"{100 * (after / before - 1):+.1f} %" if before else ""


def _figure(value: Any) -> str:
    return number(value) if isinstance(value, (int, float)) else str(value)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
