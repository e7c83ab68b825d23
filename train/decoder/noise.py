"""The noise that a mel flows from: known at every frame by itself, so that pieces of a stream have the whole's."""

from __future__ import annotations

import numpy as np

_BLOCK = 64  # frames drawn together


def noise_between(seed: int, first: int, last: int, bands: int) -> np.ndarray:
    """Normal noise of frames [first, last), float32 [bands, last - first]."""
    blocks = range(first // _BLOCK, -(-last // _BLOCK))
    drawn = [np.random.default_rng([seed, block]).standard_normal((_BLOCK, bands), np.float32) for block in blocks]
    begin = first - blocks.start * _BLOCK
    return np.ascontiguousarray(np.concatenate(drawn)[begin : begin + last - first].T)
