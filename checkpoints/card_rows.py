"""Making the rows of a conversion's card, tensor by tensor, and comparing what was written with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
import xxhash

from checkpoints.card import Entry, RoundTrip, Row, RowsChange
from checkpoints.dtypes import name_of
from checkpoints.strips import Strips
from runtime.exits import BadInput

Held = torch.Tensor | Strips
"""A tensor on the CPU, in one of two ways."""


def hash_of(tensor: Held) -> str:
    """xxh3-64 of a CPU tensor's bytes, hexadecimal."""
    digest = xxhash.xxh3_64()
    for block in _strips(tensor).blocks():
        digest.update(block.data)
    return digest.hexdigest()


def entry_of(name: str, tensor: Held, place: tuple[int, ...] = (), known: str | None = None) -> Entry:
    """The entry of a tensor that is at hand, whose hash may be `known`."""
    return Entry(name, tuple(tensor.shape), name_of(tensor.dtype), known or hash_of(tensor), place)


def source_entry(
    name: str,
    tensor: Held,
    dtype: torch.dtype,
    resized: RowsChange | None = None,
    place: tuple[int, ...] = (),
    known: str | None = None,
) -> Entry:
    """The entry of a source's tensor that becomes `dtype` and, where its rows change, keeps the first `kept`; its hash
    may be `known`."""
    plain = entry_of(name, tensor, place, known)
    kept = _kept(tensor, resized)
    if kept.shape == plain.shape and dtype == tensor.dtype:
        return plain
    return replace(plain, expected=hash_of(kept.tensor().to(dtype)))


def _kept(tensor: Held, resized: RowsChange | None) -> Strips:
    whole = _strips(tensor)
    return whole if resized is None else whole.first(min(resized.kept, whole.shape[0]))


def _strips(tensor: Held) -> Strips:
    return tensor if isinstance(tensor, Strips) else Strips.of(tensor)


def compare(row: Row, parts: Sequence[Held]) -> RoundTrip:
    """What the row's targets, read again and taken apart into `parts`, say of its sources, in their order.

    Where rows changed, the parts may have all the target's rows.
    """
    found = RoundTrip(0, 0)
    for entry, part in zip(row.sources, parts, strict=True):
        stated = entry.expected is not None
        equal = hash_of(_kept(part, row.resized)) == (entry.expected or entry.xxh3)
        one = RoundTrip(1, equal and not stated, equal and stated, () if equal else (entry.label,))
        found = RoundTrip.merged([found, one])
    return found


def check_rows(rows: Iterable[Row]) -> None:
    """Raises BadInput where two rows claim the same tensor of the source or make the same tensor of the target."""
    for side in ("sources", "targets"):
        seen: dict[str, str] = {}
        for row in rows:
            for entry in getattr(row, side):
                if entry.label in seen:
                    raise BadInput(f"{entry.label} is claimed twice: by {seen[entry.label]} and by {row.rule}")
                seen[entry.label] = row.rule
