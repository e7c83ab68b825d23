"""What a preflight found: as JSON in the run folder, and as a table."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from configs.schema import PreflightConfig
from launch.preflight.figures import figures
from launch.preflight.judging import sick
from launch.preflight.node import Finding, Report
from runtime.exits import BAD_INPUT, DONE, SICK

FILE = "preflight.json"


@dataclass
class Outcome:
    """nodes: reports by name. findings: reasons to stop; notes: none. figures: of the job as a whole, with units in
    their names. seconds: that it took. start: which start of which Slurm job."""

    nodes: dict[str, Report] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    start: dict[str, str | None] = field(default_factory=dict)

    @property
    def sick(self) -> list[str]:
        return sick(self.findings)

    @property
    def code(self) -> int:
        """77 where nodes are named, 2 where what is wrong is no node's, 0 where nothing is."""
        if not self.findings:
            return DONE
        return SICK if self.sick else BAD_INPUT

    def reason(self) -> str:
        """What was found, in one line."""
        return "; ".join(_named(finding) for finding in self.findings) or "all nodes are well"


def write(outcome: Outcome, folder: Path) -> Path:
    """Replace the run folder's record; raises OSError where it cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    said = {"code": outcome.code, "sick": outcome.sick, "reason": outcome.reason(), **asdict(outcome)}
    partial = folder / f".{FILE}.{os.getpid()}"
    partial.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, folder / FILE)
    return folder / FILE


def read(folder: Path) -> dict[str, Any] | None:
    """The run folder's record; None where there is none that can be read."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def is_of(start: dict[str, str | None], folder: Path, moment: float) -> bool:
    """Whether the run folder's record is of this start of a job; outside Slurm, whether it was written after `moment`,
    by this node's clock."""
    found = read(folder)
    if found is None or found.get("start") != start:
        return False
    return start["job"] is not None or (folder / FILE).stat().st_mtime > moment


def table(outcome: Outcome, settings: PreflightConfig, most: int = 64) -> list[str]:
    """Lines: a row a node, sick ones first and `most` of them, as many notes and clocks, then what was found."""
    shown = {
        name: figure
        for name, figure in figures(settings).items()
        if any(name in report.figures for report in outcome.nodes.values())
    }
    heads = [f"{figure.title} {figure.unit}" for figure in shown.values()]
    named = outcome.sick
    names = sorted(outcome.nodes, key=lambda name: (name not in named, name))
    width = max([4, *(len(name) for name in names)])
    lines = ["  ".join(["node".ljust(width), *heads])] if names else []
    for name in names[:most]:
        measured = outcome.nodes[name].figures
        cells = [_cell(measured, key).rjust(len(head)) for key, head in zip(shown, heads, strict=True)]
        lines.append("  ".join([name.ljust(width), *cells]) + ("  sick" if name in named else ""))
    if len(names) > most:
        lines.append(f"and {len(names) - most} more; all are in {FILE}")
    lines += [f"{name}: {value:,.3g}" for name, value in list(outcome.figures.items())[:most]]
    lines += [f"note: {line}" for line in outcome.notes[:most]]
    lines += [f"error: {_named(finding)}" for finding in outcome.findings]
    return [*lines, f"preflight of {len(names)} nodes, {outcome.seconds:.1f} s: {_verdict(outcome)}"]


def _verdict(outcome: Outcome) -> str:
    if outcome.sick:
        return f"{', '.join(outcome.sick)} should be left out"
    return "not to be started like this" if outcome.findings else "all well"


def _named(finding: Finding) -> str:
    return f"{', '.join(finding.nodes)}: {finding.said}" if finding.nodes else finding.said


def _cell(measured: Mapping[str, float], key: str) -> str:
    return f"{measured[key]:,.3g}" if key in measured else "-"
