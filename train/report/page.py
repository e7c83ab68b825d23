"""The page itself: headline numbers, then the template with everything inlined."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from train.report.charts import charts_of
from train.report.run_folder import RunFolder, read_run_folder
from train.report.samples import listen_to

REPORT_FILE = "report.html"
_HERE = Path(__file__).parent
_RECENT = 0.2  # share of the run, at its end, over which the headline throughput is the median


@dataclass(frozen=True)
class Tile:
    """One headline number with a line below it."""

    label: str
    value: str
    unit: str = ""
    note: str = ""
    good: bool = False


def write_report(run_folder: Path) -> Path:
    """Write `report.html` into a run folder and return its path.

    The page needs no network and no other file. Parts of the run that are missing are named on the page. Raises
    BadInput if the folder is no run folder.
    """
    run = read_run_folder(run_folder)
    corpus = run.results.get("corpus")
    charts = charts_of(run.metrics, run.validation, _numbers(run.results.get("entropy")))
    listening = listen_to(Path(corpus) if corpus else None)
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"embed": _embed, "bytes": _bytes, "clock": _clock}
    page = environment.get_template("template.html").render(
        title=run.setting("run.name", run.folder.resolve().name),
        subtitle=_subtitle(run),
        status=_status(run),
        tiles=_tiles(run),
        charts=charts,
        chart_data=[chart.data() for chart in charts],
        listening=listening,
        strip_data=[[_strip_data(strip) for strip in sample.strips] for sample in listening.samples],
        damaged=_numbers(run.results.get("damaged")),
        not_finite=sum(not math.isfinite(_number(record.get("loss"), 0.0)) for record in run.metrics),
        environment=_flat(run.environment),
        run=run,
        style=Markup((_HERE / "style.css").read_text(encoding="utf-8")),
        script=Markup((_HERE / "report.js").read_text(encoding="utf-8")),
    )
    path = run_folder / REPORT_FILE
    partial = path.with_name(REPORT_FILE + ".partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)
    return path


# --- headline ---------------------------------------------------------------------------------------------------


def _status(run: RunFolder) -> dict[str, str]:
    """How the run ended: a word for the style sheet, and words for the reader."""
    last = run.metrics[-1]["step"] if run.metrics else 0
    step = int(_number(run.results.get("step"), last))
    steps = run.results.get("steps") or run.setting("train.steps")
    place = f"step {step:,} of {steps:,}" if steps else f"step {step:,}"
    match run.results.get("status"):
        case "finished":
            return {"kind": "finished", "text": f"Finished: {place}"}
        case "exhausted":
            return {"kind": "finished", "text": f"Finished with its data: {place}"}
        case "stopped":
            return {"kind": "stopped", "text": f"Stopped at {place}"}
    return {"kind": "open", "text": f"Not finished: {place} so far"}


def _subtitle(run: RunFolder) -> str:
    parallel = run.setting("parallel", {})
    sizes = {"TP": "tensor", "PP": "pipeline", "CP": "context", "DP": "data"}
    topology = " × ".join(f"{short}{parallel[key]}" for short, key in sizes.items() if (parallel.get(key) or 1) > 1)
    parts = [
        f"recipe {run.setting('recipe')}" if run.setting("recipe") else "",
        f"scale {run.setting('scale')}" if run.setting("scale") else "",
        f"stage {run.setting('stage.name')}" if run.setting("stage.name") else "",
        f"backbone {run.setting('backbone.name')}" if run.setting("backbone.name") else "",
        topology or ("one rank" if parallel else ""),
        str(run.setting("train.precision", "")),
    ]
    return " · ".join(part for part in parts if part)


def _tiles(run: RunFolder) -> list[Tile]:
    before, after = _validation(run)
    entropy = _numbers(run.results.get("entropy"))
    first, last = (_numbers(run.metrics[end]) if run.metrics else {} for end in (0, -1))
    tiles = []
    if "audio" in after:
        tiles.append(_audio_tile(after["audio"], entropy.get("audio")))
    if "text" in after:
        note = f"{before['text']:.3f} before training" if "text" in before else "no validation before training"
        tiles.append(Tile("Text loss, validation", f"{after['text']:.3f}", "nats a token", note))
    if "loss" in last:
        note = f"{first['loss']:.3f} at the first step" if "loss" in first else ""
        tiles.append(Tile("Training loss", f"{last['loss']:.3f}", "nats a token", note))
    if "tokens" in last:
        tiles.append(Tile("Tokens", _short(last["tokens"]), "", f"in {len(run.metrics):,} steps"))
    if "audio_hours" in last:
        tiles.append(Tile("Speech", f"{last['audio_hours']:.2f}", "hours", "read, repeats included"))
    recent = run.metrics[-max(1, int(len(run.metrics) * _RECENT)) :]
    speeds = sorted(_number(record.get("tokens_per_second"), 0.0) for record in recent)
    if speeds and speeds[-1] > 0:
        mfu = last.get("mfu")
        note = "MFU unknown: no peak for this device" if mfu is None else f"MFU {100 * mfu:.1f} %"
        tiles.append(Tile("Throughput", _short(speeds[len(speeds) // 2]), "tokens/s", note))
    training = sum(_number(record.get("seconds"), 0.0) for record in run.metrics)
    wall = _number(run.results.get("wall_seconds"), 0.0)
    if training:
        note = f"wall time since the last start {_clock(wall)}" if wall else "sum of the steps, over all starts"
        tiles.append(Tile("Time in steps", _clock(training), "", note))
    return tiles


def _audio_tile(loss: float, entropy: float | None) -> Tile:
    label = "Audio loss, validation"
    if not entropy:
        return Tile(label, f"{loss:.3f}", "nats a token", "the corpus's unigram entropy is not recorded")
    below = 100 * (1 - loss / entropy)
    against = f"{abs(below):.1f} % {'below' if below >= 0 else 'above'} the unigram entropy of {entropy:.3f}"
    return Tile(label, f"{loss:.3f}", "nats a token", against, good=below > 0)


def _validation(run: RunFolder) -> tuple[dict[str, float], dict[str, float]]:
    """Losses by term before and after training: from the results, else the first and last validation."""
    told = run.results.get("validation")
    told = told if isinstance(told, Mapping) else {}
    at_start = [record for record in run.validation if record["step"] == 0]
    before = told.get("before") or (at_start[0] if at_start else {})
    after = told.get("after") or (run.validation[-1] if run.validation else {})
    return _terms(before), _terms(after)


def _terms(record: Any) -> dict[str, float]:
    return {key.removeprefix("loss/"): value for key, value in _numbers(record).items()}


# --- writing values ---------------------------------------------------------------------------------------------


def _numbers(mapping: Any) -> dict[str, float]:
    """The finite numbers of a mapping; empty for anything else."""
    if not isinstance(mapping, Mapping):
        return {}
    found = {str(key): value for key, value in mapping.items() if isinstance(value, (int, float))}
    return {key: value for key, value in found.items() if math.isfinite(value)}


def _number(value: Any, otherwise: float) -> float:
    return value if isinstance(value, (int, float)) else otherwise


def _short(value: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if letter == 'k' else size):.3g} {letter}"
    return f"{value:,.0f}"


def _clock(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03 min."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d} h" if hours else f"{minutes}:{rest:02d} min"


def _bytes(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted keys."""
    found: dict[str, str] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = ", ".join(map(str, value)) if _is_list(value) else str(value)
    return found


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _strip_data(strip: Any) -> dict[str, Any]:
    return {"name": strip.name, "rate": strip.rate, "codes": strip.codes}


def _embed(value: Any) -> Markup:
    """JSON that cannot end the script element that holds it."""
    return Markup(json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"))
