"""The card of a conversion: what became of every tensor, and what was proved of it.

A conversion makes one `Row` for each application of a rule, as the tensors pass through its hands (`card_rows`); rows
are plain data (`Row.plain`, `Row.from_plain`), so that processes can make them apart and hand them over as JSON. A
`Card` holds all of them and is written as `card.json` and, rendered, `card.md` into the folder that the conversion
made, before that is marked complete. Hashes are xxh3-64, hexadecimal, of a tensor's bytes in row-major order.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from runtime.exits import BadInput

CARD_FILE = "card.json"
CARD_PAGE = "card.md"
FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """One tensor on one side of a conversion.

    `place` are leading indices where the tensor is one piece of a stacked one: (layer,) of a native
    "decoder.layers.mlp.linear_fc2.weight", whose `shape` is then the piece's own. `dtype` is torch's name without the
    package. `expected`, on the source's side, is the hash that taking the result apart has to give back; it is `xxh3`
    unless the row casts the tensor or changes its rows.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    xxh3: str
    place: tuple[int, ...] = ()
    expected: str | None = None

    @property
    def label(self) -> str:
        """Its name, with its place in brackets where it has one: "decoder.layers.mlp.linear_fc2.weight[3]"."""
        return self.name + (f"[{', '.join(map(str, self.place))}]" if self.place else "")

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * getattr(torch, self.dtype).itemsize


@dataclass(frozen=True)
class RowsChange:
    """A matrix with one row for each token id that kept its first `kept` rows and now has `rows`; `how` says how those
    from `kept` on were made."""

    kept: int
    rows: int
    how: str


@dataclass(frozen=True)
class Row:
    """One application of a rule: the source's tensors that it claimed, and the target's that it made of them.

    `rule` is the rule's name for the native tensor, `layout` what it does ("copy", "halves", "qkv", ...). `notes` are
    further things that were done to values, in words, such as merging a low-rank update.
    """

    rule: str
    layout: str
    sources: tuple[Entry, ...]
    targets: tuple[Entry, ...]
    resized: RowsChange | None = None
    notes: tuple[str, ...] = ()

    @property
    def cast(self) -> str | None:
        """ "float32 to bfloat16" where the dtype changed, else None."""
        before = ", ".join(dict.fromkeys(entry.dtype for entry in self.sources))
        after = ", ".join(dict.fromkeys(entry.dtype for entry in self.targets))
        return None if before == after else f"{before} to {after}"

    def plain(self) -> dict[str, Any]:
        """The row as plain data, as it is in card.json."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Row:
        """Its inverse, of data as JSON gives it back. Raises KeyError or TypeError where it is no row."""
        return cls(
            rule=plain["rule"],
            layout=plain["layout"],
            sources=tuple(_entry(entry) for entry in plain["sources"]),
            targets=tuple(_entry(entry) for entry in plain["targets"]),
            resized=None if plain["resized"] is None else RowsChange(**plain["resized"]),
            notes=tuple(plain["notes"]),
        )


@dataclass(frozen=True)
class Side:
    """What was converted, or what became of it. `name` is the folder's own, without the way to it; `topology` is how
    many ways the files are split ("tensor": 4, "pipeline": 2), empty where they hold whole tensors."""

    format: str
    name: str
    topology: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LeftOut:
    """A source tensor that has no place in the target, and why it needs none."""

    name: str
    why: str


@dataclass(frozen=True)
class RoundTrip:
    """The result, read again and taken apart by the rules, beside the hashes of the source's tensors.

    Of `tensors` source tensors `identical` came back bit for bit; `as_stated` did in the rows that were kept or in the
    dtype they were cast to, as their rows say; `differing` names the others.
    """

    tensors: int
    identical: int
    as_stated: int = 0
    differing: tuple[str, ...] = ()

    @classmethod
    def merged(cls, parts: Iterable[RoundTrip]) -> RoundTrip:
        """What several processes found, of different rows, together."""
        parts = list(parts)
        return cls(
            sum(part.tensors for part in parts),
            sum(part.identical for part in parts),
            sum(part.as_stated for part in parts),
            tuple(name for part in parts for name in part.differing),
        )

    def __str__(self) -> str:
        stated = f", {self.as_stated} after the stated cast or change of rows" if self.as_stated else ""
        text = f"{self.identical} of {self.tensors} tensors bit-identical{stated}"
        return text + (f"; not: {', '.join(self.differing)}" if self.differing else "")


@dataclass(frozen=True)
class LogitsAgreement:
    """Logits of the result beside those that the reference implementation computes from the source, on fixed inputs.

    `max_abs` is the largest difference, `cosine` the smallest over positions, `same_argmax` the share of positions with
    the same best next token; `tolerance` is what `max_abs` may be.
    """

    reference: str
    inputs: str
    tokens: int
    max_abs: float
    cosine: float
    same_argmax: float
    tolerance: float

    @property
    def agree(self) -> bool:
        return self.max_abs <= self.tolerance

    def __str__(self) -> str:
        return (
            f"largest difference {self.max_abs:.1e} (at most {self.tolerance:.0e} allowed), smallest cosine "
            f"{self.cosine:.6f}, same best token at {100 * self.same_argmax:.2f} % of {self.tokens} positions"
        )


@dataclass(frozen=True)
class Card:
    """A whole conversion. `backbone` names the configuration whose rules were used; None of a check: not done."""

    source: Side
    target: Side
    backbone: str
    rows: tuple[Row, ...]
    left_out: tuple[LeftOut, ...] = ()
    round_trip: RoundTrip | None = None
    logits: LogitsAgreement | None = None
    versions: dict[str, str] = field(default_factory=dict)
    commit: str | None = None
    format: int = FORMAT

    @property
    def casts(self) -> tuple[str, ...]:
        """Every change of dtype that was made, such as "float32 to bfloat16"."""
        return tuple(dict.fromkeys(row.cast for row in self.rows if row.cast))

    @property
    def differs(self) -> bool:
        """Whether source and target were found to differ otherwise than the card states. Logits of other dtypes do."""
        unlike = self.logits is not None and not self.logits.agree and not self.casts
        return unlike or bool(self.round_trip and self.round_trip.differing)

    @property
    def verdict(self) -> str:
        """ "equal", "not equal" or "not proved", and by what, in one line."""
        done = [f"{self.round_trip}"] if self.round_trip else []
        done += [f"logits' {self.logits}"] if self.logits else []
        if not done:
            return "not proved: nothing was compared"
        cast = f" but for the cast of {', '.join(self.casts)}" if self.casts else ""
        return f"{'not equal' if self.differs else 'equal'}{cast}: {'; '.join(done)}"


def write_card(folder: Path, card: Card) -> None:
    """Write card.json and card.md into `folder`, which is not yet complete."""
    from checkpoints.card_page import render  # it knows this module

    (folder / CARD_FILE).write_text(json.dumps(asdict(card), indent=1) + "\n", encoding="utf-8")
    (folder / CARD_PAGE).write_text(render(card), encoding="utf-8")


def read_card(folder: Path) -> Card:
    """The card in a folder. Raises BadInput where there is none or it is damaged."""
    path = folder / CARD_FILE
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        if plain["format"] != FORMAT:
            raise BadInput(f"{path}: format {plain['format']}; this version reads format {FORMAT}")
        trip, logits = plain["round_trip"], plain["logits"]
        return Card(
            **{
                **plain,
                "source": Side(**plain["source"]),
                "target": Side(**plain["target"]),
                "rows": tuple(Row.from_plain(row) for row in plain["rows"]),
                "left_out": tuple(LeftOut(**one) for one in plain["left_out"]),
                "round_trip": trip and RoundTrip(**{**trip, "differing": tuple(trip["differing"])}),
                "logits": logits and LogitsAgreement(**logits),
            }
        )
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadInput(f"{path}: damaged ({type(error).__name__}: {error})") from error


def _entry(plain: Mapping[str, Any]) -> Entry:
    return Entry(**{**plain, "shape": tuple(plain["shape"]), "place": tuple(plain["place"])})
