"""Reader of CTranslate2 `model.bin` files.

Layout, little-endian: uint32 version; string spec; uint32 revision; uint32 count, then per variable a string
name, uint8 rank, uint32 dimensions, uint8 type, uint32 bytes and the bytes; uint32 count of aliases, then pairs
of strings. A string is a uint16 length and that many bytes, the last of them NUL.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from runtime.exits import BadInput

_TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
_VERSIONS = range(5, 7)


def read_variables(file: Path, *rest: Path) -> dict[str, np.ndarray]:
    """Every variable of a model by its name, as stored; `rest` follows where the file comes in parts. Raises BadInput
    for a file that is not whole."""
    data = b"".join(part.read_bytes() for part in (file, *rest))
    at = 0

    def number(code: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f"<{code}", data, at)
        at += struct.calcsize(code)
        return value

    def string() -> str:
        nonlocal at
        length = number("H")
        at += length
        return data[at - length : at - 1].decode()

    try:
        version = number("I")
        if version not in _VERSIONS:
            raise BadInput(f"{file}: CTranslate2 file version {version} is not one of {list(_VERSIONS)}")
        string(), number("I")  # spec and its revision
        variables = {}
        for _ in range(number("I")):
            name = string()
            shape = [number("I") for _ in range(number("B"))]
            dtype, size = np.dtype(_TYPES[number("B")]), number("I")
            count = int(np.prod(shape, dtype=np.int64))
            if size != count * dtype.itemsize:
                raise BadInput(f"{file}: {name} has {size} bytes for shape {shape} of {dtype}")
            variables[name] = np.frombuffer(data, dtype, count, at).reshape(shape)
            at += size
        for _ in range(number("I")):
            alias, name = string(), string()
            variables[alias] = variables[name]
        if at != len(data):
            raise ValueError(f"{len(data)} bytes in the file")
    except (struct.error, KeyError, ValueError, UnicodeDecodeError) as error:
        raise BadInput(f"{file} is not a whole CTranslate2 model: {error} at byte {at}") from error
    return variables
