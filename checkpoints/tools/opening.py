"""A checkpoint that a tool is given: a native one, or a run's newest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from checkpoints.dtypes import DTYPES, name_of
from checkpoints.formats.native import NativeReader
from checkpoints.formats.source import open_source
from checkpoints.layout import TENSORS, complete_checkpoints
from checkpoints.manifest import MANIFEST_FILE, MODEL_PREFIX, Manifest, TensorRecord
from checkpoints.slices import Slice
from configs.schema import Precision
from runtime.exits import BadInput

_RUN_CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Opened:
    """A native checkpoint that is being read: its folder, manifest, and tensors by name."""

    folder: Path
    manifest: Manifest
    reader: NativeReader


def checkpoints_of(folder: Path) -> list[Path]:
    """The folder itself if it looks like a checkpoint, else the complete checkpoints of the run it is, oldest first."""
    for place in (folder, folder / _RUN_CHECKPOINTS):
        if checkpoints := complete_checkpoints(place):
            return checkpoints
    return [folder]


@contextmanager
def opened(folder: Path) -> Iterator[Opened]:
    """The checkpoint `folder`, or the newest of the run it is, undamaged and kept from being removed inside the block.
    Raises BadInput where there is none."""
    from checkpoints.derived import sound

    checkpoint = checkpoints_of(folder)[-1]
    with sound(checkpoint) as manifest:
        yield Opened(checkpoint, manifest, NativeReader(checkpoint / TENSORS))


class ForeignReader:
    """Tensors of any format that is read, with the names they have there; parameters alone. Raises BadInput for a path
    that holds none, or is damaged."""

    def __init__(self, path: Path) -> None:
        self.folder = path
        self._source = open_source(path)
        self.tensors = {}
        for name in sorted(self._source.names):
            shape, dtype = self._source.shape_and_dtype(name)
            self.tensors[name] = TensorRecord(tuple(shape), name_of(dtype))

    def read(self, name: str, layer: int | None = None) -> torch.Tensor:
        tensor = self._source.read(name)
        return tensor if layer is None else tensor[layer]

    def release(self) -> None:
        """Sources map and unmap by themselves."""


def is_native(path: Path) -> bool:
    """Whether a path is a native checkpoint or a run with one."""
    return (checkpoints_of(path)[-1] / MANIFEST_FILE).is_file()


def parameter_name(name: str) -> str:
    """A model parameter's name as configs and other formats say it, without the native prefix."""
    return name.removeprefix(MODEL_PREFIX)


def target_of(piece: Slice, dtype: Precision | None) -> torch.dtype:
    """The dtype to write a slice in, where parameters are asked for in `dtype`; optimiser state keeps its own."""
    if dtype is None or not is_parameter(piece.name):
        return piece.dtype
    wanted: torch.dtype = getattr(torch, DTYPES[dtype])
    return wanted


def is_parameter(name: str) -> bool:
    """Whether a native tensor is the model's, not the optimiser's."""
    return name.startswith(MODEL_PREFIX)


def new_place(out: Path) -> Path:
    """`out`, where nothing is yet. Raises BadInput where something is: tools replace nothing."""
    if out.exists() or out.is_symlink():
        raise BadInput(f"{out} is there already; name another place, or remove it first")
    return out
