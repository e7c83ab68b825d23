"""A conversion as a process works on it: its source opened, its slabs listed, each made when it is its turn."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from math import prod

import torch

from checkpoints.card import Entry, LeftOut, Row, RowsChange
from checkpoints.card_rows import source_entry
from checkpoints.conversion.job import Item, Job, Slab, Target, in_order, items_of
from checkpoints.conversion.moves import Layouts
from checkpoints.conversion.passing import Apart, Look, Sink, pour
from checkpoints.conversion.reading import (
    ForeignSlabs,
    HuggingFaceSlabs,
    NativeSlabs,
    Part,
    SlabSource,
    open_slabs,
)
from checkpoints.dtypes import name_of
from checkpoints.finite import check_finite
from checkpoints.formats.plain_files import SafetensorsSource
from checkpoints.formats.source import Format
from checkpoints.manifest import MODEL_PREFIX
from checkpoints.rules import COPY, HALVES, QKV, QKV_BLOCKS, Rule
from checkpoints.strips import Run, Strips
from checkpoints.vocabulary_surgery import METHODS, grow_rows

_LAYOUTS = {COPY: "copy", HALVES: "halves", QKV: "qkv", QKV_BLOCKS: "qkv blocks"}


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

    def carry(self, slab: Slab, sinks: Sequence[Sink], *, split: bool) -> Row:
        """Read a slab and hand it, as it is to be, to `sinks`: the native tensor to the only one, or, `split`, each of
        the foreign tensors to its own. Returns its row of the card.

        Raises BadInput where a value is no number and none may be such; what the sinks got is of no use then.
        """
        parts = self.source.read(slab.rule, slab.layer)
        resized = self._resized(slab.rule, parts[0].held.shape[0] if slab.rule.vocabulary else 0)
        whole = parts[0].held
        if self.source.split:
            whole = self.layouts.fuse(slab.rule.layout, [part.held for part in parts])
        given = [Look(part.held.dtype) for part in parts]
        changed = resized is not None or whole.dtype != slab.dtype
        runs = None if changed else self.layouts.woven(slab.rule.layout, slab.shape)
        if runs is None:
            for part, look in zip(parts, given, strict=True):
                pour(part.held, [look])
            self._check(parts, given)
            if changed:
                whole = Strips.of(self._changed(whole.tensor(), slab, resized))
        if whole.shape != slab.shape:
            raise ValueError(f"{slab.rule.native}: made {whole.shape}, planned {slab.shape}")
        if runs is None:
            made = [Look() for _ in sinks]
            apart = self.layouts.split(slab.rule.layout, whole) if split else [whole]
            for tensor, look, sink in zip(apart, made, sinks, strict=True):
                pour(tensor, [look, sink])
        else:
            same = split == self.source.split or len(parts) == len(sinks) == 1  # bytes on both sides
            made = given if same else [Look() for _ in sinks]
            self._pour_once(whole, runs, given, [] if same else made, sinks, split=split)
            self._check(parts, given)
        return Row(
            slab.rule.native,
            _LAYOUTS.get(slab.rule.layout, "fused"),
            tuple(
                source_entry(part.name, part.held, slab.dtype, resized, part.place, look.xxh3)
                for part, look in zip(parts, given, strict=True)
            ),
            tuple(
                Entry(name, shape, name_of(slab.dtype), look.xxh3, () if split else slab.place)
                for (name, shape), look in zip(self.targets(slab, split=split), made, strict=True)
            ),
            resized,
            tuple(
                f"{look.nonfinite:,} values of {part.name} are NaN or infinite"
                for part, look in zip(parts, given, strict=True)
                if look.nonfinite
            ),
        )

    def targets(self, slab: Slab, *, split: bool) -> list[tuple[str, tuple[int, ...]]]:
        """Names and shapes of what a slab becomes: the native tensor, or, `split`, the foreign ones."""
        if not split:
            return [(slab.rule.native, slab.shape)]
        return list(zip(slab.rule.names(slab.layer), self.layouts.parted(slab.rule.layout, slab.shape), strict=True))

    def _pour_once(
        self,
        whole: Strips,
        runs: Sequence[tuple[int, Run]],
        given: Sequence[Sink],
        made: Sequence[Sink],
        sinks: Sequence[Sink],
        *,
        split: bool,
    ) -> None:
        """Each sink gets the native tensor's rows, or those of its foreign tensor, from the same blocks."""
        on_whole: list[Sink] = []
        on_parts: dict[int, list[Sink]] = defaultdict(list)
        for apart, group in ((self.source.split, given), (split, made), (split, sinks)):
            for number, sink in enumerate(group):
                (on_parts[number] if apart else on_whole).append(sink)
        pour(whole, [*on_whole, *([Apart(runs, on_parts)] if on_parts else [])])

    def _check(self, parts: Sequence[Part], looks: Sequence[Look]) -> None:
        """Raise BadInput where a value is no number and none may be such."""
        for part, look in zip(parts, looks, strict=True):
            check_finite(look.nonfinite, prod(part.held.shape), part.name, self.job.source, self.job.nonfinite)

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
