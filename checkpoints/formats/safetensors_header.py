"""Headers of safetensors files, read strictly: what the format promises is checked before a byte of data is mapped.

A file is 8 bytes with the header's length N (unsigned, little-endian), N bytes of JSON, then the tensors' bytes. The
header maps each name to {"dtype", "shape", "data_offsets": [begin, end)}, offsets from the end of the header, and may
hold `__metadata__`, strings by name. Tensors fill the rest of the file without gap or overlap, in any order.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints.safety import open_regular, parse_object, quoted
from runtime.exits import BadInput

HEADER_LIMIT = 100_000_000  # bytes; the format's own
METADATA = "__metadata__"
_LENGTH = struct.Struct("<Q")
_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
_FIELDS = {"dtype", "shape", "data_offsets"}
_MOST_AXES = 64  # torch's
_MOST_BYTES = 1 << 62
_LONGEST_NAME = 1000


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file: `dtype` in the format's words ("BF16"), and where its bytes are in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file by name. Raises BadInput, one line that says what of the format is broken."""
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        try:
            start = stream.read(_LENGTH.size)
            if len(start) < _LENGTH.size:
                raise BadInput(f"{path}: {size} bytes; no safetensors file is that short")
            (length,) = _LENGTH.unpack(start)
            _check_length(path, length, size)
            content = stream.read(length)
        except OSError as error:
            raise BadInput(f"{path}: cannot be read ({error.strerror})") from error
    if len(content) != length:
        raise BadInput(f"{path}: ends inside its header")
    if not content.startswith(b"{"):
        raise BadInput(f"{path}: its header is not a JSON object")
    header = parse_object(content, f"{path}: header")
    _check_metadata(path, header.pop(METADATA, {}))
    data = size - _LENGTH.size - length
    tensors = {name: _tensor(path, name, entry, _LENGTH.size + length, data) for name, entry in header.items()}
    _check_tiling(path, tensors, _LENGTH.size + length, size)
    return tensors


def _check_length(path: Path, length: int, size: int) -> None:
    if length == 0:
        raise BadInput(f"{path}: its header has length 0")
    if length > HEADER_LIMIT:
        raise BadInput(f"{path}: its header has length {length:,}; the format allows {HEADER_LIMIT:,}")
    if length > size - _LENGTH.size:
        raise BadInput(f"{path}: its header has length {length:,}, past the end of the file ({size:,} bytes)")


def _check_metadata(path: Path, metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BadInput(f"{path}: its {METADATA} is malformed: it holds strings by name")


def _tensor(path: Path, name: str, entry: Any, start: int, data: int) -> StoredTensor:
    """One entry, checked by itself; `data` bytes of tensors begin at `start`."""
    if not name or len(name) > _LONGEST_NAME or not name.isprintable():
        raise BadInput(f"{path}: absurd tensor name {quoted(name)}")
    where = f"{path}: tensor {quoted(name)}"
    if not isinstance(entry, dict) or set(entry) != _FIELDS:
        raise BadInput(f"{where}: described by something else than dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise BadInput(f"{where}: unknown dtype {quoted(dtype)}")
    if not _are_whole(shape) or len(shape) > _MOST_AXES:
        raise BadInput(f"{where}: impossible shape {quoted(shape)}")
    if not _are_whole(offsets) or len(offsets) != 2:
        raise BadInput(f"{where}: data_offsets {quoted(offsets)} are not two whole numbers from 0 on")
    wanted = most = _BYTES[dtype]
    for length in shape:
        wanted *= length
        most *= max(length, 1)  # an axis of length 0 hides no absurd one
        if most > _MOST_BYTES:
            raise BadInput(f"{where}: impossible shape {quoted(shape)}: more bytes than can be counted")
    begin, end = offsets
    if begin > end:
        raise BadInput(f"{where}: data_offsets {quoted(offsets)} are out of order")
    if end > data:
        raise BadInput(f"{where}: data_offsets {quoted(offsets)} go past the end of the file, {data:,} bytes of data")
    if end - begin != wanted:
        raise BadInput(f"{where}: {end - begin:,} bytes of data, {dtype} {quoted(shape)} takes {wanted:,}")
    return StoredTensor(dtype, tuple(shape), start + begin, start + end)


def _check_tiling(path: Path, tensors: dict[str, StoredTensor], start: int, size: int) -> None:
    """Whether the tensors fill everything from `start` to the file's end once."""
    place = start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin < place:
            raise BadInput(f"{path}: tensor {quoted(name)} overlaps the one before it")
        if tensor.begin > place:
            raise BadInput(f"{path}: a gap of {tensor.begin - place:,} bytes before tensor {quoted(name)}")
        place = tensor.end
    if place != size:
        raise BadInput(f"{path}: {size - place:,} trailing bytes that belong to no tensor")


def _are_whole(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(number) is int and number >= 0 for number in numbers)
