"""A conversion's card as Markdown: what, from, to and the verdict first, then a table of rules, then every tensor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from checkpoints.card import Card, Entry, Row, Side


def render(card: Card) -> str:
    """The page, in Markdown."""
    lines = [
        f"# {card.source.name} → {card.target.name}",
        "",
        f"**{card.verdict}**",
        "",
        *_table(
            ("", "from", "to"),
            [
                ("format", card.source.format, card.target.format),
                ("split", _topology(card.source), _topology(card.target)),
                ("tensors", *(f"{len(entries):,}" for entries in _sides(card))),
                ("elements", *(f"{sum(_elements(entry) for entry in entries):,}" for entries in _sides(card))),
                ("bytes", *(f"{sum(entry.bytes for entry in entries):,}" for entries in _sides(card))),
                ("dtypes", *(", ".join(sorted({entry.dtype for entry in entries})) for entries in _sides(card))),
            ],
        ),
        "",
        f"- Backbone: {card.backbone}",
        f"- Round trip: {card.round_trip or 'not done'}",
        f"- Logits: {_logits(card)}",
        f"- Made by: {', '.join(f'{name} {version}' for name, version in card.versions.items()) or 'unknown'}"
        + (f"; commit {card.commit}" if card.commit else ""),
        "",
        "## What was changed",
        "",
        *(_changes(card) or ["Nothing: every value of the source is in the target, bit for bit."]),
        "",
        "## Rules",
        "",
        *_table(
            ("rule", "does", "applied", "made of", "gives"),
            [_rule_line(rows) for rows in _by_rule(card.rows).values()],
        ),
    ]
    if card.left_out:
        lines += ["", "## Left out", "", *_table(("tensor", "why"), [(_code(o.name), o.why) for o in card.left_out])]
    lines += [
        "",
        "## Tensors",
        "",
        "Hashes are xxh3-64 of a tensor's bytes.",
        "",
        *_table(
            ("source", "shape", "dtype", "hash in", "target", "shape", "dtype", "hash out"),
            [line for row in card.rows for line in _tensor_lines(row)],
        ),
    ]
    return "\n".join(lines) + "\n"


def _sides(card: Card) -> tuple[list[Entry], list[Entry]]:
    rows = card.rows
    return [entry for row in rows for entry in row.sources], [entry for row in rows for entry in row.targets]


def _elements(entry: Entry) -> int:
    total = 1
    for length in entry.shape:
        total *= length
    return total


def _topology(side: Side) -> str:
    return ", ".join(f"{key} {value}" for key, value in side.topology.items()) or "whole tensors"


def _logits(card: Card) -> str:
    if card.logits is None:
        return "not compared"
    return f"against {card.logits.reference}, {card.logits.inputs}: {card.logits}"


def _changes(card: Card) -> list[str]:
    """One line for each way in which values are not the source's own, with how many tensors or which."""
    said: dict[str, list[Row]] = {}
    for row in card.rows:
        changes = [f"cast from {row.cast}"] if row.cast else []
        if row.resized is not None:
            had = row.sources[0].shape[0]
            dropped = f"; rows {row.resized.kept} to {had - 1} of the source left out" if had > row.resized.kept else ""
            changes.append(
                f"{had} rows became {row.resized.rows}: the first {row.resized.kept} kept{dropped}; "
                f"new ones: {row.resized.how}"
            )
        for change in (*changes, *row.notes):
            said.setdefault(change, []).append(row)
    return [
        f"- {change}: {_code(rows[0].rule) if len(rows) == 1 else f'{len(rows)} of {len(card.rows)} rows'}"
        for change, rows in said.items()
    ]


def _by_rule(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows of each rule, in the order of the rules' first ones."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.rule, []).append(row)
    return found


def _rule_line(rows: Sequence[Row]) -> tuple[str, ...]:
    first = rows[0]
    return (
        _code(first.rule),
        first.layout,
        f"{len(rows)}x",
        "<br>".join(_described(entry) for entry in first.sources),
        "<br>".join(_described(entry) for entry in first.targets),
    )


def _described(entry: Entry) -> str:
    return f"{_code(entry.label)} {_shape(entry)} {entry.dtype}"


def _tensor_lines(row: Row) -> Iterable[tuple[str, ...]]:
    for index in range(max(len(row.sources), len(row.targets))):
        cells: list[str] = []
        for side in (row.sources, row.targets):
            if index < len(side):
                entry = side[index]
                cells += [_code(entry.label), _shape(entry), entry.dtype, _code(entry.xxh3)]
            else:
                cells += ["", "", "", ""]
        yield tuple(cells)


def _shape(entry: Entry) -> str:
    return "×".join(map(str, entry.shape)) or "scalar"


def _code(text: str) -> str:
    return "`" + text.replace("`", "'").replace("|", "\\|") + "`"


def _table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *lines)]
