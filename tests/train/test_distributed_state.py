"""The distributed optimiser's boxes against a plain way to find them, and against the gathered state."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from train.engines.distributed_state import boxes


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_boxes_fill_the_range_in_order(shape: list[int], data: st.DataObject) -> None:
    size = int(np.prod(shape))
    start = data.draw(st.integers(0, size))
    end = data.draw(st.integers(start, size))
    whole = np.arange(size).reshape(shape)
    found = list(boxes(tuple(shape), start, end))
    parts = [
        whole[tuple(slice(at, at + length) for at, length in zip(offsets, sizes, strict=True))].ravel()
        for offsets, sizes in found
    ]
    assert np.concatenate([*parts, np.empty(0, int)]).tolist() == list(range(start, end))
    assert all(len(part) for part in parts) and len(found) <= 2 * len(shape) - 1
