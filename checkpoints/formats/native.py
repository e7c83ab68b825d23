"""Native parameters, read and written one tensor at a time in one process, for conversions.

The files are Megatron-Core's `torch_dist`: what is written here loads through `checkpoints.store.load` on any
topology. Parameters of equal layers are stacked under one name with the layer as first axis, as Megatron does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from checkpoints.manifest import TensorRecord
from checkpoints.metadata import read_metadata, read_piece, tensor_records
from runtime.exits import BadInput

COMMON_FILE = "common.pt"
FORMAT_FILE = "metadata.json"
TORCH_DIST = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
_ONE_FILE = 5 * 10**9  # bytes; above it every slab gets its own file


class InProcessWriter(FileSystemWriter):
    """Torch's writer on the caller's thread alone (it loses what other writer threads raise), with honest errors."""

    def __init__(self, folder: Path, single_file_per_rank: bool = True) -> None:
        super().__init__(folder, single_file_per_rank=single_file_per_rank, thread_count=1)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write the files. A disk that fails raises OSError, which Torch's archive writer hides behind its own."""
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            hidden = error.__context__
            if isinstance(hidden, OSError):
                raise OSError(hidden.errno, hidden.strerror, str(self.path)) from error
            raise


@dataclass(frozen=True)
class Slab:
    """One piece to write: the whole of tensor `name`, or its `layer` where layers are stacked.

    `shape` and `dtype` are the piece's own, without the layer axis; `make` gives it, on the CPU, when it is its turn.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], torch.Tensor]
    layer: int | None = None
    layers: int | None = None

    @property
    def offsets(self) -> torch.Size:
        inner = (0,) * len(self.shape)
        return torch.Size(inner if self.layer is None else (self.layer, *inner))

    @property
    def stored_shape(self) -> torch.Size:
        return torch.Size(self.shape if self.layer is None else (1, *self.shape))

    @property
    def global_shape(self) -> torch.Size:
        return torch.Size(self.shape if self.layers is None else (self.layers, *self.shape))

    def write_item(self) -> WriteItem:
        return WriteItem(
            index=MetadataIndex(self.name, self.offsets),
            type=WriteItemType.SHARD,
            tensor_data=TensorWriteData(
                chunk=ChunkStorageMetadata(offsets=self.offsets, sizes=self.stored_shape),
                properties=TensorProperties(dtype=self.dtype),
                size=self.global_shape,
            ),
        )


class _SlabPlanner(DefaultSavePlanner):
    """Makes each tensor only when the writer comes to it, so that memory holds one at a time."""

    def __init__(self, slabs: Iterable[Slab]) -> None:
        super().__init__(flatten_state_dict=False)
        self.slabs = {(slab.name, slab.offsets): slab for slab in slabs}

    def create_local_plan(self) -> SavePlan:
        return SavePlan([slab.write_item() for slab in self.slabs.values()])

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor:
        index = write_item.index
        assert index.offset is not None
        slab = self.slabs[index.fqn, index.offset]
        tensor = slab.make()
        if tuple(tensor.shape) != slab.shape or tensor.dtype != slab.dtype:
            raise ValueError(f"{slab.name}: made {tuple(tensor.shape)} {tensor.dtype}, planned {slab.shape}")
        return tensor.contiguous().view(slab.stored_shape)


def write_tensors(folder: Path, slabs: Iterable[Slab]) -> dict[str, TensorRecord]:
    """Write slabs as a `torch_dist` folder without optimiser state; returns what was written, by name.

    Raises what a slab's `make` raises, and OSError or RuntimeError where the disk fails.
    """
    slabs = list(slabs)
    planner = _SlabPlanner(slabs)
    planner.set_up_planner({}, is_coordinator=True)
    total = sum(slab.dtype.itemsize * slab.stored_shape.numel() for slab in slabs)
    writer = InProcessWriter(folder, single_file_per_rank=total <= _ONE_FILE)
    writer.set_up_storage_writer(True)
    plans, index = planner.create_global_plan([writer.prepare_local_plan(planner.create_local_plan())])
    written = writer.write_data(writer.prepare_global_plan(plans)[0], planner)
    writer.finish(index, [written.value()])
    torch.save({}, folder / COMMON_FILE)
    (folder / FORMAT_FILE).write_text(json.dumps(TORCH_DIST), encoding="utf-8")
    return tensor_records(index)


class NativeReader:
    """Reads tensors of a `torch_dist` folder whole or layer by layer, whatever topology wrote them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._index = read_metadata(folder)
        self.tensors = tensor_records(self._index)

    def read(self, name: str, layer: int | None = None) -> torch.Tensor:
        """Tensor `name`, or its `layer` without the layer axis. Raises BadInput where it is not there in full."""
        stored = self._index.state_dict_metadata.get(name)
        if not isinstance(stored, TensorStorageMetadata):
            raise BadInput(f"{self.folder}: has no tensor {name}")
        low = [0] * len(stored.size)
        high = list(stored.size)
        if layer is not None:
            low[0], high[0] = layer, layer + 1
        whole = self._range(name, stored, low, high)
        return whole if layer is None else whole[0]

    def read_box(self, name: str, offsets: Sequence[int], sizes: Sequence[int]) -> torch.Tensor:
        """A box of tensor `name`, the axis of layers counted as one; likewise."""
        stored = self._index.state_dict_metadata.get(name)
        if not isinstance(stored, TensorStorageMetadata) or len(stored.size) != len(offsets):
            raise BadInput(f"{self.folder}: has no tensor {name} of {len(offsets)} axes")
        low, high = list(offsets), [offset + size for offset, size in zip(offsets, sizes, strict=True)]
        return self._range(name, stored, low, high)

    def _range(self, name: str, stored: TensorStorageMetadata, low: list[int], high: list[int]) -> torch.Tensor:
        whole = torch.empty([end - start for start, end in zip(low, high, strict=True)], dtype=stored.properties.dtype)
        filled = 0
        for chunk in stored.chunks:
            begin = [max(start, offset) for start, offset in zip(low, chunk.offsets, strict=True)]
            end = [min(e, o + s) for e, o, s in zip(high, chunk.offsets, chunk.sizes, strict=True)]
            if any(b >= e for b, e in zip(begin, end, strict=True)):
                continue
            saved = read_piece(self.folder, self._index, name, chunk)
            source = tuple(slice(b - o, e - o) for b, e, o in zip(begin, end, chunk.offsets, strict=True))
            target = tuple(slice(b - start, e - start) for b, e, start in zip(begin, end, low, strict=True))
            whole[target] = saved[source]
            filled += saved[source].numel()
        if filled != whole.numel():
            raise BadInput(f"{self.folder}: {name} has {filled} of {whole.numel()} elements")
        return whole
