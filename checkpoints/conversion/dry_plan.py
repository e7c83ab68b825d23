"""A native checkpoint planned from a config alone: what every rank's files will hold, down to the byte."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

import torch

from checkpoints.conversion.shards import Piece, Topology, pieces, topology_of
from checkpoints.manifest import MODEL_PREFIX
from checkpoints.maps import named
from checkpoints.shapes import native_shape
from configs.schema import BackboneConfig, ParallelConfig
from runtime.exits import BadInput


@dataclass(frozen=True)
class Plan:
    """pieces: what every rank writes, by its number; bytes are of tensors, archives add some 1.5 kB to each."""

    backbone: str
    dtype: str
    topology: Topology
    pieces: dict[int, list[Piece]]

    @property
    def itemsize(self) -> int:
        return int(getattr(torch, self.dtype).itemsize)

    @property
    def total(self) -> int:
        """Bytes of the whole checkpoint."""
        return sum(self.bytes_of(rank) for rank in self.pieces)

    def bytes_of(self, rank: int) -> int:
        return sum(piece.elements for piece in self.pieces[rank]) * self.itemsize


def plan(backbone: BackboneConfig, parallel: ParallelConfig, rows: int, dtype: str) -> Plan:
    """What a checkpoint of this backbone with `rows` of vocabulary holds, saved by the ranks that `parallel` makes.

    Raises BadInput where the topology does not divide the model.
    """
    topology = topology_of(backbone, parallel, rows)
    rules = named(backbone.architecture).rules(backbone)
    shapes = {rule.native: _shape(rule.native, backbone, rows) for rule in rules}
    of_ranks: dict[int, list[Piece]] = {rank: [] for rank in range(topology.ranks)}
    for piece in pieces(rules, shapes, topology, backbone.layers):
        of_ranks[piece.rank].append(piece)
    return Plan(backbone.name, dtype, topology, of_ranks)


def _shape(native: str, backbone: BackboneConfig, rows: int) -> tuple[int, ...]:
    shape = native_shape(native, backbone, rows)
    if shape is None:
        raise BadInput(f"no plan for {native}: its shape does not follow from the backbone")
    return shape


def as_table(planned: Plan, full: bool = False) -> str:
    """A line a rank, with a line a piece where it is `full`, and the totals."""
    topology = planned.topology
    lines = [
        f"{planned.backbone}, {planned.dtype}: {topology.tensor} tensor-parallel x {topology.pipeline} pipeline ranks, "
        f"stages {_runs(str(stage) for stage in topology.stages)}",
        f"{'rank':>5} {'tensor':>6} {'pipeline':>8} {'pieces':>7} {'bytes':>18}",
    ]
    for rank, mine in planned.pieces.items():
        stage, tensor = divmod(rank, topology.tensor)
        lines.append(f"{rank:>5} {tensor:>6} {stage:>8} {len(mine):>7} {planned.bytes_of(rank):>18,}")
        if full:
            lines += [f"      {_line(piece, planned.itemsize)}" for piece in mine]
    count = sum(map(len, planned.pieces.values()))
    lines.append(f"total {count:>23} {planned.total:>18,} bytes, {planned.total / 1e9:,.1f} GB")
    return "\n".join(lines)


def as_json(planned: Plan) -> str:
    """All of it: a list of pieces for each rank, names as they are in the files."""
    ranks = [
        {
            "rank": rank,
            "bytes": planned.bytes_of(rank),
            "pieces": [
                {
                    "name": MODEL_PREFIX + piece.name,
                    "offsets": piece.offsets,
                    "shape": piece.sizes,
                    "of": piece.whole,
                    "bytes": piece.elements * planned.itemsize,
                }
                for piece in mine
            ],
        }
        for rank, mine in planned.pieces.items()
    ]
    described = {"backbone": planned.backbone, "dtype": planned.dtype, "topology": planned.topology.plain()}
    return json.dumps({**described, "bytes": planned.total, "ranks": ranks})


def _line(piece: Piece, itemsize: int) -> str:
    place = f"from {list(piece.offsets)} of {list(piece.whole)}"
    return f"{MODEL_PREFIX}{piece.name} {list(piece.sizes)} {place}, {piece.elements * itemsize:,} bytes"


def _runs(words: Iterable[str]) -> str:
    """Words with equal neighbours counted."""
    return " ".join(word if count == 1 else f"{count} x {word}" for word, count in _counted(words))


def _counted(words: Iterable[str]) -> list[tuple[str, int]]:
    return [(word, len(list(group))) for word, group in groupby(words)]
