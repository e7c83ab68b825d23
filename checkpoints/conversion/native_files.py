"""Native files of a conversion: every item makes one for each rank of its stage that has a part of it.

The k-th item of a rank is `__<rank>_<k>.distcp`, as torch names a rank's files, and holds what Megatron-Core would have
saved there: so a rank of that topology reads its own files alone, from beginning to end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import torch

from checkpoints.atomic import write_bytes
from checkpoints.card import Row
from checkpoints.conversion.job import Item, Slab
from checkpoints.conversion.journal import Done, Place
from checkpoints.conversion.opened import Conversion
from checkpoints.conversion.shards import Box, boxes
from checkpoints.hashed_file import Archive, HashedFile
from checkpoints.index import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageInfo,
    TensorProperties,
    TensorStorageMetadata,
    pickled,
)
from checkpoints.layout import TENSORS
from checkpoints.manifest import MODEL_PREFIX
from checkpoints.metadata import METADATA_FILE
from checkpoints.strips import Bytes, cut


def write_item(conversion: Conversion, item: Item, tick: Callable[[int], None]) -> Done:
    """Write an item's files and sync them. `tick` is told each slab's bytes. Raises OSError where the disk fails."""
    topology = conversion.job.topology
    shares = [boxes(slab.rule.parallel, slab.shape, topology.tensor) for slab in item.slabs]
    folder = conversion.job.folder / TENSORS
    rows: list[Row] = []
    places: list[Place] = []
    with ExitStack() as stack:
        files = {
            rank: stack.enter_context(HashedFile(folder / _name(topology.rank(rank, item.stage), item.ordinal)))
            for rank in range(topology.tensor)
            if any(of_ranks[rank] for of_ranks in shares)
        }
        for slab, of_ranks in zip(item.slabs, shares, strict=True):
            cuts = [_Cut(files[rank], slab, box) for rank, mine in enumerate(of_ranks) for box in mine]
            rows.append(conversion.carry(slab, [partial(_hand_out, cuts)], split=False))
            places += [one.place() for one in cuts]
            tick(slab.nbytes)
        records = {_name(topology.rank(rank, item.stage), item.ordinal): file.finish() for rank, file in files.items()}
    return Done(tuple(rows), records, tuple(places))


def _name(rank: int, ordinal: int) -> str:
    return f"__{rank}_{ordinal}.distcp"


def _hand_out(cuts: Iterable[_Cut], first: int, rows: Bytes) -> None:
    for one in cuts:
        one.take(first, rows)


class _Cut:
    """A box of a slab on its way into a rank's file. Boxes of one file follow one another in the tensor's rows."""

    def __init__(self, file: HashedFile, slab: Slab, box: Box) -> None:
        self._file = file
        self._slab = slab
        self._box = box
        self._leading = (1,) * (slab.layer is not None)
        self._runs, self._columns = cut(slab.shape, slab.dtype, box.offsets, box.sizes)
        self._archive: Archive | None = None

    def take(self, first: int, rows: Bytes) -> None:
        """Write what it has of the next rows."""
        for begin, count in self._runs:
            low, high = max(begin - first, 0), min(begin + count - first, len(rows))
            if low < high:
                part = rows[low:high, slice(*self._columns)]
                self._open().write(np.ascontiguousarray(part).reshape(-1))

    def place(self) -> Place:
        """Where all of it is now."""
        archive = self._open()
        return Place(
            MODEL_PREFIX + self._slab.rule.native,
            (*self._slab.place, *self._box.offsets),
            self._leading + self._box.sizes,
            self._file.name,
            archive.begin,
            archive.end - archive.begin,
        )

    def _open(self) -> Archive:
        if self._archive is None:
            self._archive = Archive(self._file, self._leading + self._box.sizes, self._slab.dtype)
        return self._archive


def write_index(folder: Path, slabs: Iterable[Slab], layers: int, done: Iterable[Done]) -> None:
    """Write torch's index of all that was written."""
    stored: dict[str, TensorStorageMetadata] = {}
    for slab in slabs:
        whole = slab.shape if slab.layer is None else (layers, *slab.shape)
        properties = TensorProperties(slab.dtype)
        stored.setdefault(MODEL_PREFIX + slab.rule.native, TensorStorageMetadata(properties, torch.Size(whole), []))
    places: dict[MetadataIndex, StorageInfo] = {}
    for place in (place for one in done for place in one.places):
        offsets = torch.Size(place.offsets)
        stored[place.name].chunks.append(ChunkStorageMetadata(offsets, torch.Size(place.sizes)))
        places[MetadataIndex(place.name, offsets)] = StorageInfo(place.file, place.offset, place.length)
    write_bytes(folder / METADATA_FILE, pickled(Metadata(dict(stored), places)))
