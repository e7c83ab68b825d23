"""Making the rows of a conversion's card, tensor by tensor, and comparing what was written with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
import xxhash

from checkpoints.card import Entry, RoundTrip, Row, RowsChange
from checkpoints.dtypes import name_of
from runtime.exits import BadInput


def hash_of(tensor: torch.Tensor) -> str:
    """xxh3-64 of a CPU tensor's bytes, hexadecimal. A tensor that is not contiguous is copied for it."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return xxhash.xxh3_64_hexdigest(flat.numpy().data)


def entry_of(name: str, tensor: torch.Tensor, place: tuple[int, ...] = (), known: str | None = None) -> Entry:
    """The entry of a tensor that is at hand, whose hash may be `known`."""
    return Entry(name, tuple(tensor.shape), name_of(tensor.dtype), known or hash_of(tensor), place)


def source_entry(
    name: str,
    tensor: torch.Tensor,
    dtype: torch.dtype,
    resized: RowsChange | None = None,
    place: tuple[int, ...] = (),
) -> Entry:
    """The entry of a source's tensor that becomes `dtype` and, where its rows change, keeps the first `kept`."""
    kept = tensor if resized is None else tensor[: resized.kept]
    plain = entry_of(name, tensor, place)
    return (
        plain
        if kept.shape == tensor.shape and dtype == tensor.dtype
        else replace(plain, expected=hash_of(kept.to(dtype)))
    )


def compare(row: Row, parts: Sequence[torch.Tensor]) -> RoundTrip:
    """What the row's targets, read again and taken apart into `parts`, say of its sources, in their order.

    Where rows changed, the parts may have all the target's rows.
    """
    found = RoundTrip(0, 0)
    for entry, part in zip(row.sources, parts, strict=True):
        kept = part if row.resized is None else part[: row.resized.kept]
        stated = entry.expected is not None
        equal = hash_of(kept) == (entry.expected or entry.xxh3)
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
