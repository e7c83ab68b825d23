"""A conversion as a process works on it: its source opened, its slabs listed, each made when it is its turn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
import xxhash

from checkpoints.card import Entry, LeftOut, Row, RowsChange
from checkpoints.card_rows import source_entry
from checkpoints.conversion.job import Item, Job, Slab, Target, in_order, items_of
from checkpoints.conversion.moves import Layouts
from checkpoints.conversion.reading import (
    ForeignSlabs,
    HuggingFaceSlabs,
    NativeSlabs,
    Part,
    SlabSource,
    open_slabs,
)
from checkpoints.finite import check_finite, count_nonfinite
from checkpoints.formats.plain_files import SafetensorsSource
from checkpoints.formats.source import Format
from checkpoints.manifest import MODEL_PREFIX
from checkpoints.rules import COPY, HALVES, QKV, QKV_BLOCKS, Rule
from checkpoints.strips import Strips
from checkpoints.vocabulary_surgery import METHODS, grow_rows

_LAYOUTS = {COPY: "copy", HALVES: "halves", QKV: "qkv", QKV_BLOCKS: "qkv blocks"}


@dataclass(frozen=True)
class Made:
    """A slab as it is to be, and the source's side of its row in the card."""

    slab: Slab
    held: Strips
    sources: tuple[Entry, ...]
    resized: RowsChange | None
    notes: tuple[str, ...]
    same: Strips | None
    """The source's only tensor."""

    def row(self, targets: tuple[Entry, ...]) -> Row:
        rule = self.slab.rule
        return Row(rule.native, _LAYOUTS.get(rule.layout, "fused"), self.sources, targets, self.resized, self.notes)

    def known(self, tensor: Strips) -> str | None:
        """The hash of a tensor that is written, where it is the source's very own."""
        return self.sources[0].xxh3 if tensor is self.same else None


class Conversion:
    """Of one job, in one process."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.layouts = Layouts(job.backbone)
        self._source: SlabSource | None = None

    @property
    def source(self) -> SlabSource:
        if self._source is None:
            self._source = open_slabs(self.job.source, self.job.backbone, self.job.partly)
        return self._source

    @cached_property
    def result(self) -> SlabSource:
        """What was written, to be read once it can be (`finishing.make_readable`)."""
        job = self.job
        if job.target is Target.native:
            return NativeSlabs(job.folder, job.backbone, partly=True)
        if job.target is Target.safetensors:
            return ForeignSlabs(SafetensorsSource(job.folder), Format.safetensors, job.backbone)
        return HuggingFaceSlabs(job.folder, job.backbone)

    def release(self) -> None:
        """Let go of what was mapped of the source; where it has to be closed for that, it opens again when asked."""
        if self._source is not None and not self._source.release():
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
        """Raises BadInput where a value is no number and none may be such."""
        parts = self.source.read(slab.rule, slab.layer)
        resized = self._resized(slab.rule, parts[0].held.shape[0] if slab.rule.vocabulary else 0)
        seen = [self._look(part) for part in parts]
        held = parts[0].held
        if self.source.split:
            held = self.layouts.fuse(slab.rule.layout, [part.held for part in parts])
        if resized is not None or held.dtype != slab.dtype:
            held = Strips.of(self._changed(held.tensor(), slab, resized))
        if held.shape != slab.shape:
            raise ValueError(f"{slab.rule.native}: made {held.shape}, planned {slab.shape}")
        return Made(
            slab,
            held,
            tuple(
                source_entry(part.name, part.held, slab.dtype, resized, part.place, known)
                for part, (known, _) in zip(parts, seen, strict=True)
            ),
            resized,
            tuple(
                f"{count:,} values of {part.name} are NaN or infinite"
                for part, (_, count) in zip(parts, seen, strict=True)
                if count
            ),
            parts[0].held if len(parts) == 1 else None,
        )

    def _look(self, part: Part) -> tuple[str, int]:
        """A tensor's hash, and how many of its values are no numbers. Raises BadInput where none may be."""
        digest, count = xxhash.xxh3_64(), 0
        for block in part.held.blocks():
            digest.update(block.data)
            count += count_nonfinite(block, part.held.dtype)
        check_finite(count, prod(part.held.shape), part.name, self.job.source, self.job.nonfinite)
        return digest.hexdigest(), count

    def _changed(self, tensor: torch.Tensor, slab: Slab, resized: RowsChange | None) -> torch.Tensor:
        if resized is not None:
            rows = self.job.rows
            assert rows is not None
            name = MODEL_PREFIX + slab.rule.native
            tensor = grow_rows(tensor, rows.kept, rows.rows, rows.seed, name, rows.new_rows)
        return tensor.to(slab.dtype).contiguous()

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
