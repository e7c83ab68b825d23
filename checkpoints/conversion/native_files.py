"""Native files of a conversion: every item makes one for each rank of its stage that has a part of it.

The k-th item of a rank is `__<rank>_<k>.distcp`, as torch names a rank's files, and holds what Megatron-Core would have
saved there: so a rank of that topology reads its own files alone, from beginning to end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

import torch

from checkpoints.atomic import write_bytes
from checkpoints.card import Row
from checkpoints.card_rows import entry_of
from checkpoints.conversion.job import Item, Slab
from checkpoints.conversion.journal import Done, Place
from checkpoints.conversion.opened import Conversion
from checkpoints.conversion.shards import Box, boxes
from checkpoints.hashed_file import ALIGNED, HashedFile, write_strips
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
from checkpoints.strips import Strips


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
            made = conversion.make(slab)
            for rank, mine in enumerate(of_ranks):
                name = _name(topology.rank(rank, item.stage), item.ordinal)
                places += [_write(files[rank], name, slab, box, made.held) for box in mine]
            rows.append(made.row((entry_of(slab.rule.native, made.held, slab.place, made.known(made.held)),)))
            del made  # before the next one is made
            tick(slab.nbytes)
        records = {_name(topology.rank(rank, item.stage), item.ordinal): file.finish() for rank, file in files.items()}
    return Done(tuple(rows), records, tuple(places))


def _name(rank: int, ordinal: int) -> str:
    return f"__{rank}_{ordinal}.distcp"


def _write(file: HashedFile, name: str, slab: Slab, box: Box, tensor: Strips) -> Place:
    file.write(bytes(-file.size % ALIGNED))
    begin = file.size
    leading = (1,) * (slab.layer is not None)
    write_strips(file, tensor.box(box.offsets, box.sizes), leading)
    return Place(
        MODEL_PREFIX + slab.rule.native,
        (*slab.place, *box.offsets),
        leading + box.sizes,
        name,
        begin,
        file.size - begin,
    )


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
