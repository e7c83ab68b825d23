"""Dynamic time warping of tokens onto frames."""

from __future__ import annotations

import numpy as np


def warp(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cheapest path from the first cell to the last of `cost`, float [rows, columns], by steps of one row, one
    column or both: int64 rows and columns of its cells, in order. Of equal ones, the one that moves in both latest."""
    rows, columns = cost.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0.0
    for diagonal in range(2, rows + columns + 1):  # cells whose row and column, counted from 1, sum to it
        row = np.arange(max(1, diagonal - columns), min(rows, diagonal - 1) + 1)
        column = diagonal - row
        before = np.minimum(total[row - 1, column - 1], np.minimum(total[row - 1, column], total[row, column - 1]))
        total[row, column] = cost[row - 1, column - 1] + before
    path = []
    i, j = rows, columns
    while i and j:
        path.append((i - 1, j - 1))
        i, j = min(((i - 1, j - 1), (i - 1, j), (i, j - 1)), key=lambda cell: total[cell])
    steps = np.array(path[::-1], np.int64)
    return steps[:, 0], steps[:, 1]
