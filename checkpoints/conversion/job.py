"""What a conversion is, as plain data that processes hand to each other, and the pieces of work it is cut into."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from math import prod
from pathlib import Path
from typing import Any

import torch

from checkpoints.conversion.shards import Topology, stage_of
from checkpoints.maps import describe
from checkpoints.rules import Rule
from configs.schema import BackboneConfig, NewRows

ITEM_BYTES = 1 << 28
"""Of what one item writes at most, but for a single tensor that is larger: what a killed process has to do again."""

_LEAST_ITEM = 1 << 24  # bytes; files of less are a burden to whoever reads them
_ITEMS = 16  # at least, where there is enough for so many: processes share them


class Target(StrEnum):
    """What can be written. safetensors: what Hugging Face's folder has of tensors, with nothing beside them."""

    native = "native"
    huggingface = "huggingface"
    safetensors = "safetensors"


@dataclass(frozen=True)
class Rows:
    """Matrices with a row for each token id keep the first `kept` and get `rows`; see `vocabulary_surgery`."""

    kept: int
    rows: int
    seed: int
    new_rows: NewRows = NewRows.covariance


@dataclass(frozen=True)
class Job:
    """One conversion. folder: where it is made, before it takes its name. dtype: torch's name, of every tensor
    written; None: each keeps its own. topology: of native files. shard_bytes: of a safetensors file, at most.
    partly: tensors of the source that no rule claims stay behind, told in the card; else they are an error. nonfinite:
    values that are NaN or infinite are converted like others, told in the card; else they are an error."""

    source: Path
    folder: Path
    target: Target
    backbone: BackboneConfig
    topology: Topology
    dtype: str | None = None
    rows: Rows | None = None
    shard_bytes: int = 5 * 10**9
    partly: bool = False
    nonfinite: bool = False

    def plain(self) -> dict[str, Any]:
        """All that decides what is written, as JSON can hold it."""
        return {
            "source": str(self.source.absolute()),
            "target": self.target.value,
            "backbone": describe(self.backbone),
            "topology": {**self.topology.plain(), "stages": "|".join(map(str, self.topology.stages))},
            "dtype": self.dtype,
            "rows": None if self.rows is None else {**asdict(self.rows), "new_rows": self.rows.new_rows.value},
            "shard_bytes": self.shard_bytes,
            "partly": self.partly,
            "nonfinite": self.nonfinite,
        }


@dataclass(frozen=True)
class Slab:
    """One application of a rule: the whole of its native tensor, or its `layer`, as it is to be: `shape` is without the
    axis of layers."""

    rule: Rule
    layer: int | None
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    @property
    def place(self) -> tuple[int, ...]:
        """Where it is in the native tensor."""
        return () if self.layer is None else (self.layer,)


@dataclass(frozen=True)
class Item:
    """What one process does in one go: slabs of one stage, one after the other. `ordinal` counts the rank's items."""

    number: int
    stage: int
    ordinal: int
    slabs: tuple[Slab, ...]

    @property
    def nbytes(self) -> int:
        return sum(slab.nbytes for slab in self.slabs)


def in_order(rules: Sequence[Rule], backbone: BackboneConfig, topology: Topology) -> list[tuple[Rule, int | None]]:
    """Applications of the rules, from the embedding through the layers to the head."""
    single: list[tuple[Rule, int | None]] = [(rule, None) for rule in rules if not rule.layered]
    first = [one for one in single if stage_of(one[0], None, topology) == 0]
    last = [one for one in single if one not in first]
    layered = [(rule, layer) for layer in range(backbone.layers) for rule in rules if rule.layered]
    return [*first, *layered, *last]


def items_of(slabs: Sequence[Slab], topology: Topology) -> list[Item]:
    """The slabs, in order, in items of some bytes each."""
    total = sum(slab.nbytes for slab in slabs)
    most = min(ITEM_BYTES, max(_LEAST_ITEM, total // _ITEMS))
    items: list[Item] = []
    ordinals: dict[int, int] = {}
    for stage, group in _groups(slabs, topology, most):
        rank = stage % topology.pipeline
        items.append(Item(len(items), stage, ordinals.get(rank, 0), tuple(group)))
        ordinals[rank] = ordinals.get(rank, 0) + 1
    return items


def _groups(slabs: Sequence[Slab], topology: Topology, most: int) -> Iterator[tuple[int, list[Slab]]]:
    group: list[Slab] = []
    stage = 0
    for slab in slabs:
        of = stage_of(slab.rule, slab.layer, topology)
        if group and (of != stage or sum(one.nbytes for one in group) + slab.nbytes > most):
            yield stage, group
            group = []
        group.append(slab)
        stage = of
    if group:
        yield stage, group
