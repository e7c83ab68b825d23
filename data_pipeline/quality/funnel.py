"""What each clause of a filter takes away from a corpus, in order, over all and by source and language."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.quality.filters import Filter, known_names
from data_pipeline.shards import DamagedSample, ShardIndex, read_index
from runtime.exits import BadInput


@dataclass(frozen=True)
class Amount:
    utterances: int = 0
    hours: float = 0.0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.utterances + other.utterances, self.hours + other.hours)


@dataclass(frozen=True)
class FunnelRow:
    """One clause: what came to it and what it dropped; `missing` of the dropped had no number or name that it asks for;
    `alone` is what it would drop of all."""

    clause: str
    entered: Amount
    dropped: Amount
    missing: Amount
    alone: Amount

    @property
    def left(self) -> Amount:
        return Amount(self.entered.utterances - self.dropped.utterances, self.entered.hours - self.dropped.hours)


@dataclass(frozen=True)
class Funnel:
    """`group` is "all", "source <name>" or "language <name>"."""

    group: str
    rows: tuple[FunnelRow, ...]


@dataclass(frozen=True)
class FunnelReport:
    """`unreadable`: shards that were left out, because their index is damaged or missing."""

    expression: str
    funnels: tuple[Funnel, ...]
    unreadable: tuple[str, ...] = ()


def funnel_in(told: Mapping[str, Any]) -> FunnelReport:
    """The report that `dataclasses.asdict` made `told` of. Raises TypeError, KeyError or AttributeError for anything
    else."""

    def row(one: Mapping[str, Any]) -> FunnelRow:
        amounts = {name: Amount(**one[name]) for name in ("entered", "dropped", "missing", "alone")}
        return FunnelRow(clause=one["clause"], **amounts)

    funnels = tuple(Funnel(funnel["group"], tuple(map(row, funnel["rows"]))) for funnel in told["funnels"])
    return FunnelReport(told["expression"], funnels, tuple(told["unreadable"]))


def columns_of(shards: Iterable[Path]) -> set[str]:
    """Columns that any of the shards has; damaged ones have none."""
    found: set[str] = set()
    for shard in shards:
        try:
            found.update(read_index(shard).columns)
        except DamagedSample:
            continue  # the funnel says which
    return found


def measure_funnel(shards: list[Path], condition: Filter, known: Collection[str] = ()) -> FunnelReport:
    """The funnel of `condition` over `shards`, from their indexes alone. Raises BadInput for a name that none has, but
    for `known` columns, of which no utterance may have a value."""
    columns = columns_of(shards) | set(known)
    clauses = condition.clauses or (condition,)
    totals: dict[str, list[FunnelRow]] = {"all": [_empty(clause) for clause in clauses]}
    unreadable = []
    for shard in shards:
        try:
            index = read_index(shard)
        except DamagedSample as error:
            unreadable.append(str(error))
            continue
        for group, rows in _shard_rows(index, clauses, columns).items():
            held = totals.setdefault(group, [_empty(clause) for clause in clauses])
            totals[group] = [_sum(one, other) for one, other in zip(held, rows, strict=True)]
    if unreadable and len(unreadable) == len(shards):
        raise BadInput(f"no shard of the corpus has a readable index: {unreadable[0]}")
    groups = ["all", *sorted(set(totals) - {"all"}, key=lambda group: (group.split()[0] == "language", group))]
    funnels = tuple(Funnel(group, tuple(totals[group])) for group in groups)
    return FunnelReport(condition.expression, funnels, tuple(unreadable))


def _empty(clause: Filter) -> FunnelRow:
    return FunnelRow(clause.expression, *[Amount()] * 4)


def _sum(one: FunnelRow, other: FunnelRow) -> FunnelRow:
    amounts = (getattr(one, name) + getattr(other, name) for name in ("entered", "dropped", "missing", "alone"))
    return FunnelRow(one.clause, *amounts)


def _shard_rows(index: ShardIndex, clauses: tuple[Filter, ...], columns: set[str]) -> dict[str, list[FunnelRow]]:
    steps = []
    remain = np.ones(len(index), bool)
    for clause in clauses:
        keeps = clause.keep(index, columns)
        steps.append((clause.expression, remain, remain & ~keeps, remain & ~keeps & _missing(index, clause), ~keeps))
        remain = remain & keeps
    groups = {"all": np.ones(len(index), bool)}
    for label in ("source", "language"):
        names = index.labels.get(label, np.full(len(index), ""))
        groups |= {f"{label} {name or 'not known'}": names == name for name in np.unique(names).tolist()}

    def amount(chosen: np.ndarray) -> Amount:
        return Amount(int(chosen.sum()), float(index.duration[chosen].sum() / 3600))

    return {
        group: [FunnelRow(clause, *(amount(mask & inside) for mask in masks)) for clause, *masks in steps]
        for group, inside in groups.items()
    }


def _missing(index: ShardIndex, clause: Filter) -> np.ndarray:
    """bool [samples]: where any name that `clause` asks for has no value."""
    found = np.zeros(len(index), bool)
    for name in clause.names:
        if name in index.labels:
            found |= index.labels[name] == ""
        elif name in index.columns:
            found |= np.isnan(index.columns[name])
        elif name not in known_names(()):
            found |= True
    return found


# --- as text and as a page ------------------------------------------------------------------------------------------

_HEAD = ("clause", "came", "hours", "dropped", "hours", "not measured", "alone", "left", "hours")


def _cells(row: FunnelRow) -> tuple[str, ...]:
    return (
        row.clause,
        f"{row.entered.utterances:,}",
        f"{row.entered.hours:.2f}",
        f"{row.dropped.utterances:,}",
        f"{row.dropped.hours:.2f}",
        f"{row.missing.utterances:,}",
        f"{row.alone.utterances:,}",
        f"{row.left.utterances:,}",
        f"{row.left.hours:.2f}",
    )


def as_text(report: FunnelReport) -> str:
    """Plain text, a table for each group."""
    lines = []
    for funnel in report.funnels:
        table = [_HEAD, *map(_cells, funnel.rows)]
        widths = [max(len(row[column]) for row in table) for column in range(len(_HEAD))]
        lines.append(funnel.group)
        for row in table:
            first, *rest = (f"{row[0]:<{widths[0]}}", *map(str.rjust, row[1:], widths[1:]))
            lines.append("  ".join((f"  {first}", *rest)).rstrip())
    lines += [f"left out, unreadable: {line}" for line in report.unreadable]
    return "\n".join(lines)


def as_html(report: FunnelReport) -> str:
    """A fragment of a page: one table, a body for each group."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in _HEAD)
    bodies = []
    for funnel in report.funnels:
        rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in _cells(row))}</tr>" for row in funnel.rows)
        bodies.append(f'<tbody><tr><th colspan="{len(_HEAD)}">{escape(funnel.group)}</th></tr>{rows}</tbody>')
    unread = "".join(f"<p>left out, unreadable: {escape(line)}</p>" for line in report.unreadable)
    return f'<table class="funnel"><thead><tr>{head}</tr></thead>{"".join(bodies)}</table>{unread}'
