"""A native checkpoint's files laid out for another topology: each rank then reads what it needs from a file of its own.

Any topology loads any layout; what is won is that a rank's file holds its tensors in one run and no other's, at any
size of cluster. The tensors, optimiser state among them, keep their names, shapes and bits. Data-parallel ranks share
the file of their tensor- and pipeline-parallel place.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import torch

from checkpoints.conversion.shards import Box, Topology, boxes, stage_of, topology_of
from checkpoints.derived import Part, derive
from checkpoints.formats.native import NativeReader
from checkpoints.manifest import MODEL_PREFIX, Manifest
from checkpoints.maps import described, of_backbone
from checkpoints.rules import COPY, Parallel, Rule
from checkpoints.shapes import MATRICES
from checkpoints.slices import Slice, slices, without_number
from checkpoints.tools.opening import Opened, is_parameter, new_place, opened
from configs.parameter_names import LORA_A, LORA_B, is_lora
from configs.schema import BackboneConfig, ParallelConfig
from runtime.exits import BadInput

_STATE = "optimizer.state."
_NUMBER = re.compile(r"decoder\.layers\.(\d+)\.")


def reshard(folder: Path, out: Path, parallel: ParallelConfig, *, optimizer: bool = True) -> Path:
    """Write a native checkpoint as the checkpoint `out`, one file for each tensor- and pipeline-parallel rank of
    `parallel` that has something to save.

    A run goes on from it as from the original; without `optimizer` its state and the loader's place stay behind.
    Returns `out`. Raises BadInput where the checkpoint is damaged or does not say its backbone, or the topology does
    not divide the model.
    """
    new_place(out)
    with opened(folder) as source:
        backbone = _backbone(source)
        held = source.reader.tensors
        topology = topology_of(backbone, parallel, held[MODEL_PREFIX + MATRICES[0]].shape[0])
        layout = _Layout(backbone, topology)
        ranks: list[list[Part]] = [[] for _ in range(topology.ranks)]
        for piece in slices(held):
            if optimizer or is_parameter(piece.name):
                for rank, part in layout.parts(piece, source.reader):
                    ranks[rank].append(part)
        return derive(
            source.folder,
            out,
            ranks,
            doing="resharding",
            goes_on=optimizer,
            topology={**source.manifest.topology, **topology.plain(), "resharded": True},
        )


def _backbone(source: Opened) -> BackboneConfig:
    manifest: Manifest = source.manifest
    if manifest.backbone is None:
        raise BadInput(
            f"{source.folder} does not say its backbone: an older version wrote it; write it again with this"
        )
    if MODEL_PREFIX + MATRICES[0] not in source.reader.tensors:
        raise BadInput(f"{source.folder} has no {MATRICES[0]}: a part of a model has no topology")
    return described(manifest.backbone)


class _Layout:
    """Where the ranks of a topology have the slices of a model's checkpoint."""

    def __init__(self, backbone: BackboneConfig, topology: Topology) -> None:
        self._topology = topology
        rules = of_backbone(backbone).rules(backbone)
        self._parallel = {rule.native: rule.parallel for rule in rules}

    def parts(self, piece: Slice, reader: NativeReader) -> list[tuple[int, Part]]:
        """The parts of a slice, each with the rank that saves it."""
        name = parameter_of(piece)
        stage = self._stage(name)
        found = []
        for tensor, mine in enumerate(boxes(self._shared(name), piece.shape, self._topology.tensor)):
            rank = self._topology.rank(tensor, stage)
            found += [(rank, _part(piece, box, reader)) for box in mine]
        return found

    def _stage(self, name: str) -> int:
        layer = _NUMBER.match(name)
        of = Rule(without_number(name), (name,), COPY)
        return stage_of(of, int(layer[1]) if layer else None, self._topology)

    def _shared(self, name: str) -> Parallel:
        """How ranks share a parameter; what no rule knows is whole on each of them."""
        native = without_number(name)
        if is_lora(native):
            return _shared_factor(native, self._parallel)
        return self._parallel.get(native, Parallel.replicated)


def parameter_of(piece: Slice) -> str:
    """Name of the parameter that a slice is of, or is the optimiser's state of, with the layer's number."""
    label = piece.label
    if label.startswith(_STATE):
        label = label.removeprefix(_STATE).partition(".")[2]
    return label.removeprefix(MODEL_PREFIX)


def _shared_factor(native: str, parallel: dict[str, Parallel]) -> Parallel:
    """A factor is cut on the side where its weight is: B of a column-parallel layer, A of a row-parallel one."""
    module, _, factor = native.rpartition(".")
    weight = parallel.get(f"{module}.weight", Parallel.replicated)
    cut = LORA_A if weight is Parallel.rows else LORA_B
    return weight if factor == cut else Parallel.replicated


def _part(piece: Slice, box: Box, reader: NativeReader) -> Part:
    offsets, sizes = box.offsets, box.sizes
    if piece.layer is not None:
        offsets, sizes = (piece.layer, *offsets), (1, *sizes)
    make = partial(_read, reader, piece.name, offsets, sizes)
    return Part(piece.name, offsets, sizes, piece.whole, piece.dtype, make)


def _read(reader: NativeReader, name: str, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> torch.Tensor:
    reader.release()
    return reader.read_box(name, offsets, sizes)
