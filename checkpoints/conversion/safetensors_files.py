"""Safetensors files of a conversion: laid out in full before the first byte, then filled by many processes at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from math import prod
from pathlib import Path

import torch

from checkpoints.card import Row
from checkpoints.conversion.job import Item, Slab
from checkpoints.conversion.journal import Done
from checkpoints.conversion.moves import Layouts
from checkpoints.conversion.opened import Conversion
from checkpoints.direct import DirectFile, Run
from checkpoints.formats.huggingface import INDEX_FILE, WEIGHTS_FILE, write_json
from checkpoints.formats.safetensors_file import header_of
from checkpoints.strips import Bytes

UNFINISHED = ".unfinished"  # of a file's name, until the conversion is complete


@dataclass(frozen=True)
class Spot:
    """Where a tensor is: bytes `begin` to `end` of `file`."""

    file: str
    begin: int
    end: int


@dataclass(frozen=True)
class FilesLayout:
    """Headers by file name, the files' sizes, and every tensor's spot."""

    headers: dict[str, bytes]
    sizes: dict[str, int]
    spots: dict[str, Spot]

    @property
    def total(self) -> int:
        """Bytes of all tensors."""
        return sum(spot.end - spot.begin for spot in self.spots.values())


def lay_out(slabs: Sequence[Slab], layouts: Layouts, most: int) -> FilesLayout:
    """Tensors in the slabs' order, in files of at most `most` bytes of them; in a file in the library's own order."""
    files: list[list[tuple[str, tuple[int, ...], torch.dtype]]] = [[]]
    size = 0
    for slab in slabs:
        shapes = layouts.parted(slab.rule.layout, slab.shape)
        for name, shape in zip(slab.rule.names(slab.layer), shapes, strict=True):
            nbytes = prod(shape) * slab.dtype.itemsize
            if files[-1] and size + nbytes > most:
                files.append([])
                size = 0
            files[-1].append((name, shape, slab.dtype))
            size += nbytes
    if len(files) == 1:
        names = [WEIGHTS_FILE]
    else:
        names = [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    headers: dict[str, bytes] = {}
    sizes: dict[str, int] = {}
    spots: dict[str, Spot] = {}
    for file, tensors in zip(names, files, strict=True):
        ordered = sorted(tensors, key=lambda tensor: (-tensor[2].itemsize, tensor[0]))
        headers[file], places = header_of(ordered, {"format": "pt"})
        begin = len(headers[file])
        spots |= {name: Spot(file, begin + low, begin + high) for name, (low, high) in places.items()}
        sizes[file] = begin + max((high for _, high in places.values()), default=0)
    return FilesLayout(headers, sizes, spots)


def prepare(folder: Path, layout: FilesLayout) -> None:
    """Make the files, of their full size, with their headers; those that are there already stay."""
    for file, header in layout.headers.items():
        path = folder / (file + UNFINISHED)
        if not path.exists() and not (folder / file).exists():
            made = folder / f".{file}.{os.getpid()}"
            with made.open("wb") as stream:
                stream.write(header)
                stream.truncate(layout.sizes[file])
            os.rename(made, path)


def write_item(conversion: Conversion, item: Item, tick: Callable[[int], None]) -> Done:
    """Write an item's tensors where they belong, and sync them. Raises OSError where the disk fails."""
    layout = layout_of(conversion)
    folder = conversion.job.folder
    rows: list[Row] = []
    files: dict[str, DirectFile] = {}
    try:
        for slab in item.slabs:
            spots = [layout.spots[name] for name in slab.rule.names(slab.layer)]
            for spot in spots:
                if spot.file not in files:
                    files[spot.file] = DirectFile(folder / (spot.file + UNFINISHED), new=False)
            runs = [Run(files[spot.file], spot.begin) for spot in spots]
            sinks = [partial(_append, run, spot.end) for spot, run in zip(spots, runs, strict=True)]
            rows.append(conversion.carry(slab, sinks, split=True))
            if [run.end for run in runs] != [spot.end for spot in spots]:
                raise ValueError(f"{slab.rule.native} does not fill its places")
            tick(slab.nbytes)
        for file in files.values():
            file.sync()
    finally:
        for file in files.values():
            file.close()
    return Done(tuple(rows))


def finish(folder: Path, layout: FilesLayout) -> None:
    """Give the files their names, and write the index where there are several."""
    for file in layout.headers:
        if (folder / (file + UNFINISHED)).exists():
            os.rename(folder / (file + UNFINISHED), folder / file)
    if len(layout.headers) > 1:
        weight_map = {name: layout.spots[name].file for name in sorted(layout.spots)}
        write_json(folder / INDEX_FILE, {"metadata": {"total_size": layout.total}, "weight_map": weight_map})


@lru_cache(maxsize=1)
def layout_of(conversion: Conversion) -> FilesLayout:
    """Of the files that a conversion writes."""
    return lay_out(conversion.slabs, conversion.layouts, conversion.job.shard_bytes)


def _append(run: Run, end: int, _: int, rows: Bytes) -> None:
    run.write(rows.reshape(-1).data)
    if run.end == end:
        run.flush()  # a layer may have a thousand experts, each with a run
