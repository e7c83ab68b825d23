"""Native parameters, read one tensor at a time in one process, for conversions and tools.

The files are Megatron-Core's `torch_dist`. Parameters of equal layers are stacked under one name with the layer as
first axis, as Megatron does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from checkpoints.formats.mapped import MappedFiles
from checkpoints.index import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata
from checkpoints.metadata import read_metadata, tensor_records
from checkpoints.strips import Strips, side_by_side
from runtime.exits import BadInput

COMMON_FILE = "common.pt"
FORMAT_FILE = "metadata.json"
TORCH_DIST = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}


class NativeReader:
    """Reads tensors of a `torch_dist` folder whole or layer by layer, whatever topology wrote them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._index = read_metadata(folder)
        self.tensors = tensor_records(self._index)
        self._files = MappedFiles(folder)

    def read(self, name: str, layer: int | None = None) -> torch.Tensor:
        """Tensor `name`, or its `layer` without the layer axis: a view of the mapped file where one piece holds
        all of it. Raises BadInput where it is not there in full."""
        stored = self._stored(name)
        low = [0] * len(stored.size)
        high = list(stored.size)
        if layer is not None:
            low[0], high[0] = layer, layer + 1
        whole = self._range(name, stored, low, high)
        return whole if layer is None else whole[0]

    def strips(self, name: str, layer: int | None = None) -> Strips:
        """What `read` gives, as it lies in the mapped files; likewise."""
        stored = self._stored(name)
        tiles = []
        for chunk in stored.chunks:
            offsets = list(chunk.offsets)
            if layer is None:
                tiles.append((offsets, Strips.of(self._chunk(name, chunk))))
            elif offsets[0] <= layer < offsets[0] + chunk.sizes[0]:
                tiles.append((offsets[1:], Strips.of(self._chunk(name, chunk)[layer - offsets[0]])))
        try:
            shape = tuple(stored.size if layer is None else stored.size[1:])
            return side_by_side(shape, stored.properties.dtype, tiles)
        except ValueError:  # laid by another program, in more ways than one
            return Strips.of(self.read(name, layer))

    def read_box(self, name: str, offsets: Sequence[int], sizes: Sequence[int]) -> torch.Tensor:
        """A box of tensor `name`, the axis of layers counted as one; likewise."""
        stored = self._index.state_dict_metadata.get(name)
        if not isinstance(stored, TensorStorageMetadata) or len(stored.size) != len(offsets):
            raise BadInput(f"{self.folder}: has no tensor {name} of {len(offsets)} axes")
        low, high = list(offsets), [offset + size for offset, size in zip(offsets, sizes, strict=True)]
        return self._range(name, stored, low, high)

    def _stored(self, name: str) -> TensorStorageMetadata:
        stored = self._index.state_dict_metadata.get(name)
        if not isinstance(stored, TensorStorageMetadata):
            raise BadInput(f"{self.folder}: has no tensor {name}")
        return stored

    def _range(self, name: str, stored: TensorStorageMetadata, low: list[int], high: list[int]) -> torch.Tensor:
        held = self._held_in_one(name, stored, low, high)
        if held is not None:
            return held
        whole = torch.empty([end - start for start, end in zip(low, high, strict=True)], dtype=stored.properties.dtype)
        filled = 0
        for chunk in stored.chunks:
            begin = [max(start, offset) for start, offset in zip(low, chunk.offsets, strict=True)]
            end = [min(e, o + s) for e, o, s in zip(high, chunk.offsets, chunk.sizes, strict=True)]
            if any(b >= e for b, e in zip(begin, end, strict=True)):
                continue
            saved = self._chunk(name, chunk)
            source = tuple(slice(b - o, e - o) for b, e, o in zip(begin, end, chunk.offsets, strict=True))
            target = tuple(slice(b - start, e - start) for b, e, start in zip(begin, end, low, strict=True))
            whole[target] = saved[source]
            filled += saved[source].numel()
        if filled != whole.numel():
            raise BadInput(f"{self.folder}: {name} has {filled} of {whole.numel()} elements")
        return whole

    def _held_in_one(
        self, name: str, stored: TensorStorageMetadata, low: list[int], high: list[int]
    ) -> torch.Tensor | None:
        for chunk in stored.chunks:
            corners = zip(low, high, chunk.offsets, chunk.sizes, strict=True)
            if all(offset <= start and end <= offset + size for start, end, offset, size in corners):
                place = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, chunk.offsets, strict=True))
                return self._chunk(name, chunk)[place]
        return None

    def _chunk(self, name: str, chunk: ChunkStorageMetadata) -> torch.Tensor:
        place = self._index.storage_data.get(MetadataIndex(name, chunk.offsets))
        if place is None:
            raise BadInput(f"{self.folder}: the index has no place for {name}")
        stored = self._index.state_dict_metadata[name]
        assert isinstance(stored, TensorStorageMetadata)
        return self._files.tensor(name, place, chunk.sizes, stored.properties.dtype)

    def release(self) -> None:
        """Unmap the files that were read."""
        self._files.release()
