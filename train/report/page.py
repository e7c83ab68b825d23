"""The page itself: headline numbers, then the template with everything inlined."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.corpus import Corpus
from data_pipeline.looking.pages import Tile, clock, environment, left_out_kinds, page_file, short
from data_pipeline.looking.samples import Gallery, gallery
from runtime.exits import BadInput
from runtime.run_files import REPORT_FILE
from train.report.charts import charts_of
from train.report.run_folder import RunFolder, read_run_folder

_HERE = Path(__file__).parent
_RECENT = 0.2  # share of the run, at its end, over which the headline throughput is the median


def write_report(run_folder: Path) -> Path:
    """Write `report.html` into a run folder and return its path.

    The page needs no network and no other file. Parts of the run that are missing are named on the page. Raises
    BadInput if the folder is no run folder.
    """
    run = read_run_folder(run_folder)
    corpus = run.results.get("corpus")
    charts = charts_of(run.metrics, run.validation, _numbers(run.results.get("entropy")))
    listening = _listen_to(Path(corpus) if corpus else None)
    page = (
        environment(_HERE)
        .get_template("template.html")
        .render(
            title=run.setting("run.name", run.folder.resolve().name),
            subtitle=_subtitle(run),
            status=status_of(run),
            tiles=_tiles(run),
            charts=charts,
            chart_data=[chart.data() for chart in charts],
            listening=listening,
            strip_data=listening.strip_data(),
            damaged=_numbers(run.results.get("damaged")) or _damage_so_far(run),
            left_out=left_out_kinds(_mapping(run.results.get("left_out"))),
            not_finite=sum(not math.isfinite(_number(record.get("loss"), 0.0)) for record in run.metrics),
            environment=_flat(run.environment),
            run=run,
            script=page_file("report.js", _HERE),
        )
    )
    path = run_folder / REPORT_FILE
    partial = path.with_name(REPORT_FILE + ".partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)
    return path


def _listen_to(folder: Path | None) -> Gallery:
    """A few validation samples of the run's corpus."""
    if folder is None:
        return Gallery([], "The run's results name no corpus.")
    try:
        return gallery(Corpus.open(folder), "valid")
    except BadInput as error:
        return Gallery([], f"The corpus cannot be opened: {error}.")


def _damage_so_far(run: RunFolder) -> dict[str, float]:
    """Damaged samples by kind, of the last step that was recorded."""
    last = _numbers(run.metrics[-1]) if run.metrics else {}
    return {key.removeprefix("damaged/"): count for key, count in last.items() if key.startswith("damaged/")}


# --- headline ---------------------------------------------------------------------------------------------------


def status_of(run: RunFolder) -> dict[str, str]:
    """How the run ended: a word for the style sheet, and words for the reader."""
    last = run.metrics[-1]["step"] if run.metrics else 0
    if run.results.get("status") == "finished" and not run.results.get("steps"):
        return {"kind": "finished", "text": "Finished"}
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
        f"{run.setting('train.precision', '')}{', products in fp8' if run.setting('train.fp8') else ''}",
    ]
    return " · ".join(part for part in parts if part)


def _tiles(run: RunFolder) -> list[Tile]:
    before, after = terms_before_and_after(run)
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
        tiles.append(Tile("Tokens", short(last["tokens"]), "", f"in {len(run.metrics):,} steps"))
    if "audio_hours" in last:
        tiles.append(Tile("Speech", f"{last['audio_hours']:.2f}", "hours", "read, repeats included"))
    recent = run.metrics[-max(1, int(len(run.metrics) * _RECENT)) :]
    speeds = sorted(_number(record.get("tokens_per_second"), 0.0) for record in recent)
    if speeds and speeds[-1] > 0:
        mfu = last.get("mfu")
        note = "MFU unknown: no peak for this device" if mfu is None else f"MFU {100 * mfu:.1f} %"
        tiles.append(Tile("Throughput", short(speeds[len(speeds) // 2]), "tokens/s", note))
    training = sum(_number(record.get("seconds"), 0.0) for record in run.metrics)
    wall = _number(run.results.get("wall_seconds"), 0.0)
    if training:
        note = f"wall time since the last start {clock(wall)}" if wall else "sum of the steps, over all starts"
        tiles.append(Tile("Time in steps", clock(training), "", note))
    return tiles


def _audio_tile(loss: float, entropy: float | None) -> Tile:
    label = "Audio loss, validation"
    if not entropy:
        return Tile(label, f"{loss:.3f}", "nats a token", "the corpus's unigram entropy is not recorded")
    below = 100 * (1 - loss / entropy)
    against = f"{abs(below):.1f} % {'below' if below >= 0 else 'above'} the unigram entropy of {entropy:.3f}"
    return Tile(label, f"{loss:.3f}", "nats a token", against, good=below > 0)


def terms_before_and_after(run: RunFolder) -> tuple[dict[str, float], dict[str, float]]:
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


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _numbers(mapping: Any) -> dict[str, float]:
    """The finite numbers of a mapping; empty for anything else."""
    if not isinstance(mapping, Mapping):
        return {}
    found = {str(key): value for key, value in mapping.items() if isinstance(value, (int, float))}
    return {key: value for key, value in found.items() if math.isfinite(value)}


def _number(value: Any, otherwise: float) -> float:
    return value if isinstance(value, (int, float)) else otherwise


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
