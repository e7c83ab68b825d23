"""A conversion as a process works on it: its source opened, its slabs listed, each made when it is its turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from checkpoints.card import Entry, LeftOut, Row, RowsChange
from checkpoints.card_rows import entry_of, source_entry
from checkpoints.conversion.job import Item, Job, Slab, in_order, items_of
from checkpoints.conversion.reading import Part, SlabSource, open_slabs
from checkpoints.finite import check_finite
from checkpoints.manifest import MODEL_PREFIX
from checkpoints.rules import COPY, HALVES, QKV, QKV_BLOCKS, Rule
from checkpoints.vocabulary_surgery import METHODS, grow_rows

_LAYOUTS = {COPY: "copy", HALVES: "halves", QKV: "qkv", QKV_BLOCKS: "qkv blocks"}


@dataclass(frozen=True)
class Made:
    """A slab as it is to be, and the source's side of its row in the card."""

    slab: Slab
    tensor: torch.Tensor
    sources: tuple[Entry, ...]
    resized: RowsChange | None
    notes: tuple[str, ...]
    known: dict[tuple[int, int], str]
    """Hashes of the source's tensors, by where they are in memory and their bytes."""

    def row(self, targets: tuple[Entry, ...]) -> Row:
        rule = self.slab.rule
        return Row(rule.native, _LAYOUTS.get(rule.layout, "fused"), self.sources, targets, self.resized, self.notes)

    def entry(self, name: str, tensor: torch.Tensor, place: tuple[int, ...] = ()) -> Entry:
        """Of what is written. What is the source's very tensor is not hashed a second time."""
        return entry_of(name, tensor, place, self.known.get((tensor.data_ptr(), tensor.nbytes)))


class Conversion:
    """Of one job, in one process."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._source: SlabSource | None = None

    @property
    def source(self) -> SlabSource:
        if self._source is None:
            self._source = open_slabs(self.job.source, self.job.backbone, self.job.partly)
        return self._source

    def release(self) -> None:
        """Close the source, so that what was mapped of it is no longer this process's; it opens again when asked."""
        self._source = None

    @cached_property
    def left_out(self) -> list[LeftOut]:
        """Tensors of the source that no rule claims and none needs to; see `SlabSource.left_out` for what is raised."""
        return self.source.left_out()

    @cached_property
    def slabs(self) -> list[Slab]:
        """All, in order. Raises BadInput where the source lacks any."""
        rules = self.source.rules
        return [self._slab(rule, layer) for rule, layer in in_order(rules, self.job.backbone, self.job.topology)]

    @cached_property
    def items(self) -> list[Item]:
        return items_of(self.slabs, self.job.topology)

    def make(self, slab: Slab) -> Made:
        tensor, parts = self.source.read(slab.rule, slab.layer)
        notes = self._notes_of(parts)
        resized = self._resized(slab.rule, len(tensor) if tensor.dim() else 0)
        sources = tuple(source_entry(part.name, part.tensor, slab.dtype, resized, part.place) for part in parts)
        known = {
            (part.tensor.data_ptr(), part.tensor.nbytes): entry.xxh3
            for part, entry in zip(parts, sources, strict=True)
            if part.tensor.is_contiguous()
        }
        if resized is not None:
            rows = self.job.rows
            assert rows is not None
            name = MODEL_PREFIX + slab.rule.native
            tensor = grow_rows(tensor, rows.kept, rows.rows, rows.seed, name, rows.new_rows)
        tensor = tensor.to(slab.dtype).contiguous()
        if tuple(tensor.shape) != slab.shape:
            raise ValueError(f"{slab.rule.native}: made {tuple(tensor.shape)}, planned {slab.shape}")
        return Made(slab, tensor, sources, resized, notes, known)

    def _notes_of(self, parts: Sequence[Part]) -> tuple[str, ...]:
        """What the card says of values that are no numbers. Raises BadInput where there are any and none may be."""
        counts = {
            part.name: check_finite(part.tensor, part.name, self.job.source, self.job.nonfinite) for part in parts
        }
        return tuple(f"{count:,} values of {name} are NaN or infinite" for name, count in counts.items() if count)

    def _slab(self, rule: Rule, layer: int | None) -> Slab:
        shape, dtype = self.source.shape_and_dtype(rule, layer)
        if self._resized(rule, shape[0] if shape else 0) is not None:
            assert self.job.rows is not None
            shape = (self.job.rows.rows, *shape[1:])
        return Slab(rule, layer, shape, dtype if self.job.dtype is None else getattr(torch, self.job.dtype))

    def _resized(self, rule: Rule, held: int) -> RowsChange | None:
        rows = self.job.rows
        if rows is None or not rule.vocabulary or held == rows.kept == rows.rows:
            return None
        return RowsChange(rows.kept, rows.rows, METHODS[rows.new_rows])
