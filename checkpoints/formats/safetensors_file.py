"""One safetensors file, written tensor by tensor: its header comes first, so shapes and dtypes are planned.

The library's own writer needs all tensors in memory at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from checkpoints.atomic import partial_of, sync_folder
from runtime.exits import BadInput
from runtime.progress import Progress, bytes_line

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNED = 8  # bytes; the header is filled up with spaces


@dataclass(frozen=True)
class Entry:
    """A tensor to write; `make` gives it, on the CPU, when it is its turn."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], torch.Tensor]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def write_safetensors(path: Path, entries: Sequence[Entry], metadata: Mapping[str, str], doing: str) -> Path:
    """Write `entries` as the file `path`, which appears whole or not at all; `metadata` goes into its header.

    Raises BadInput where the disk is full or fails, and what a `make` raises.
    """
    partial = partial_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as stream:
                stream.write(header_of(((entry.name, entry.shape, entry.dtype) for entry in entries), metadata)[0])
                total = sum(entry.nbytes for entry in entries)
                with Progress("megaphone").phase(doing, total, told=bytes_line) as show:
                    done = 0
                    for entry in entries:
                        stream.write(_content(entry))
                        done += entry.nbytes
                        show(done)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(partial, path)
            sync_folder(path.parent)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror or error}") from error
    return path


def _content(entry: Entry) -> memoryview:
    tensor = entry.make()
    if tuple(tensor.shape) != entry.shape or tensor.dtype != entry.dtype:
        raise ValueError(f"{entry.name}: made {tuple(tensor.shape)} {tensor.dtype}, not as planned")
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data


def header_of(
    tensors: Iterable[tuple[str, tuple[int, ...], torch.dtype]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """What a file begins with that holds these tensors, by name, shape and dtype, one after the other; and first byte
    and end of each, counted from the header's end."""
    described: dict[str, object] = {"__metadata__": dict(metadata)}
    places = {}
    start = 0
    for name, shape, dtype in tensors:
        end = start + prod(shape) * dtype.itemsize
        described[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        places[name] = start, end
        start = end
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNED)
    return len(text).to_bytes(8, "little") + text, places
