"""NaN and infinity among weights: a model that holds any is broken, wherever it goes."""

from __future__ import annotations

import numpy as np
import torch

from checkpoints.strips import Bytes
from runtime.exits import BadInput

_BITS = {
    torch.float64: (np.int64, np.uint64, 0x7FF << 52),
    torch.float32: (np.int32, np.uint32, 0xFF << 23),
    torch.bfloat16: (np.int16, np.uint16, 0xFF << 7),
    torch.float16: (np.int16, np.uint16, 0x1F << 10),
}
"""Integers of a float's size, signed and not, and the bits of its exponent (IEEE 754; bfloat16 is float32's half).
Where all of these are set, the value is NaN or infinite: as a signed integer, positive ones are the largest there are;
as an unsigned one, negative ones."""


def count_nonfinite(content: Bytes, dtype: torch.dtype) -> int:
    """How many of these elements are NaN or infinite. Where there are none, nothing is allocated."""
    if dtype not in _BITS or not len(content):
        return 0
    signed, unsigned, exponent = _BITS[dtype]
    if int(content.view(signed).max()) < exponent:
        negative = exponent | 1 << 8 * dtype.itemsize - 1
        if int(content.view(unsigned).max()) < negative:
            return 0
    return int((content.view(unsigned) & unsigned(exponent) == exponent).sum())


def check_finite(count: int, elements: int, name: str, where: object, allowed: bool = False) -> None:
    """Raise BadInput where `count` of a tensor's `elements` are NaN or infinite, unless they are `allowed`; `where` is
    what it is read from."""
    if count and not allowed:
        raise BadInput(
            f"{where}: {name} has {count:,} of {elements:,} values that are NaN or infinite; a model with such "
            "weights computes nothing"
        )
