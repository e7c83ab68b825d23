"""Native checkpoints made of other native checkpoints, one slice at a time, complete or not there.

What is written is Megatron-Core's `torch_dist` like every native checkpoint; which part of which tensor lies in which
file is the caller's to say, one file a rank.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from checkpoints.atomic import replacing
from checkpoints.formats.native import COMMON_FILE, FORMAT_FILE, TORCH_DIST
from checkpoints.layout import STATE_FILE, TENSORS
from checkpoints.manifest import (
    MANIFEST_FILE,
    FileRecord,
    Manifest,
    TensorRecord,
    count_parameters,
    problems,
    read_manifest,
    record_files,
    versions,
    write_manifest,
)
from checkpoints.metadata import tensor_records
from checkpoints.pieces import Piece
from checkpoints.readers import reading
from checkpoints.slices import Slice
from checkpoints.writing import Written, write_pieces
from runtime.exits import BadInput
from runtime.progress import Progress, bytes_line


@dataclass(frozen=True)
class Part:
    """A box of tensor `name` that one file holds: where it begins, its shape, and the whole tensor's.

    `make` gives it, on the CPU, when it is its turn; in that shape, or without the leading layer axis of one.
    """

    name: str
    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    whole: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], torch.Tensor]

    @classmethod
    def of(cls, piece: Slice, make: Callable[[], torch.Tensor]) -> Part:
        """A whole slice."""
        return cls(piece.name, piece.offsets, piece.stored, piece.whole, piece.dtype, make)

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def write_item(self) -> WriteItem:
        return WriteItem(
            index=MetadataIndex(self.name, torch.Size(self.offsets)),
            type=WriteItemType.SHARD,
            tensor_data=TensorWriteData(
                chunk=ChunkStorageMetadata(offsets=torch.Size(self.offsets), sizes=torch.Size(self.shape)),
                properties=TensorProperties(dtype=self.dtype),
                size=torch.Size(self.whole),
            ),
        )

    def piece(self) -> Piece:
        """The part made. Raises ValueError where `make` gives another shape or dtype than planned."""
        tensor = self.make()
        if tensor.dtype != self.dtype or tensor.numel() != torch.Size(self.shape).numel():
            raise ValueError(f"{self.name}: made {tuple(tensor.shape)} {tensor.dtype}, planned {self.shape}")
        return Piece(self.write_item(), tensor.contiguous().view(self.shape))


@contextmanager
def sound(checkpoint: Path) -> Iterator[Manifest]:
    """A native checkpoint to read inside the block: kept from being removed, and found undamaged before. Raises
    BadInput where it is not."""
    with reading(checkpoint):
        if found := problems(checkpoint):
            raise BadInput(f"refused checkpoint {checkpoint}: {found[0]}")
        yield read_manifest(checkpoint)


@contextmanager
def writing(out: Path, nbytes: int) -> Iterator[Path]:
    """An empty folder to fill with about `nbytes`, which becomes `out` if the block ends well.

    Raises BadInput in one line where the disk has less room or fails; `out` then is as it was.
    """
    try:
        with replacing(out) as folder:
            free = shutil.disk_usage(folder).free
            if nbytes > free:
                raise BadInput(f"cannot write {out}: it takes {nbytes / 1e9:.2f} GB, {free / 1e9:.2f} GB are free")
            yield folder
    except OSError as error:
        raise BadInput(f"cannot write {out}: {error.strerror or error}") from error


def derive(
    native: Path,
    out: Path,
    ranks: Sequence[Sequence[Part]],
    *,
    doing: str,
    goes_on: bool = False,
    texts: Mapping[str, str] | None = None,
    **changes: Any,
) -> Path:
    """Write the checkpoint `out`: file by file the parts of `ranks`, the rest from the checkpoint `native`.

    `goes_on`: with the plain part of the optimiser's state and the loader's place, so that a run goes on from it; else
    it holds weights to start from. `changes` are fields of the manifest that are not those of `native`, `texts`
    further files. Returns `out`. Raises BadInput where the disk fails.
    """
    source = read_manifest(native)
    with writing(out, sum(part.nbytes for parts in ranks for part in parts)) as folder:
        tensors, files = write_parts(folder / TENSORS, ranks, doing)
        if goes_on:
            shutil.copyfile(native / TENSORS / COMMON_FILE, folder / TENSORS / COMMON_FILE)
            shutil.copyfile(native / STATE_FILE, folder / STATE_FILE)
        else:
            torch.save({}, folder / TENSORS / COMMON_FILE)
            (folder / STATE_FILE).write_text("{}", encoding="utf-8")
        for name in source.files:
            if "/" not in name and name not in (STATE_FILE, MANIFEST_FILE):
                shutil.copyfile(native / name, folder / name)
        for name, text in (texts or {}).items():
            (folder / name).write_text(text, encoding="utf-8")
        complete(folder, replace(source, **changes), tensors, files)
    return out


def complete(folder: Path, like: Manifest, tensors: dict[str, TensorRecord], files: Mapping[str, FileRecord]) -> None:
    """Write the manifest of what `write_parts` has written, and of all files beside it; the rest is as in `like`."""
    manifest = replace(
        like,
        tensors=tensors,
        parameters=count_parameters(tensors),
        files=record_files(folder, {f"{TENSORS}/{name}": record for name, record in files.items()}),
        versions=versions(),
    )
    write_manifest(folder, manifest)


def write_parts(
    folder: Path, ranks: Sequence[Sequence[Part]], doing: str
) -> tuple[dict[str, TensorRecord], dict[str, FileRecord]]:
    """Write a `torch_dist` folder, one file for each of `ranks` that has parts; returns its tensors and those files.

    Every part is made when it is written. Raises what its `make` does, and OSError where the disk fails.
    """
    folder.mkdir()
    planner = DefaultSavePlanner(flatten_state_dict=False)
    planner.set_up_planner({}, is_coordinator=True)
    _, index = planner.create_global_plan([SavePlan([part.write_item() for part in parts]) for parts in ranks])
    written: list[Written] = []
    never = threading.Event()
    total = sum(part.nbytes for parts in ranks for part in parts)
    with Progress("megaphone").phase(doing, total, told=bytes_line) as show:
        count = _Count(show)
        for rank, parts in enumerate(ranks):
            if parts:
                written.append(write_pieces(folder, rank, _made(parts, count), never))
    FileSystemWriter(folder).finish(index, [part.places for part in written])
    (folder / FORMAT_FILE).write_text(json.dumps(TORCH_DIST), encoding="utf-8")
    files = {name: record for part in written for name, record in part.files.items()}
    return tensor_records(index), files


class _Count:
    """Bytes done so far, shown."""

    def __init__(self, show: Callable[[float], None]) -> None:
        self._show = show
        self._done = 0

    def add(self, nbytes: int) -> None:
        self._done += nbytes
        self._show(self._done)


def _made(parts: Sequence[Part], count: _Count) -> Iterator[Piece]:
    for part in parts:
        yield part.piece()
        count.add(part.nbytes)
