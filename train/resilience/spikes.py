"""When a loss or a gradient norm is a spike: far above the median of the steps before it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

NORMAL = 1.4826  # MADs of a normal distribution in one standard deviation
LEAST_SPREAD = 0.01  # of the median: a curve that is almost flat has no spread to measure by


def limit(values: Sequence[float], bound: float) -> float:
    """median + bound x the larger of 1.4826 x MAD and 1 % of the median; what is above is a spike.

    The median and MAD, the median distance from it, are not moved by the few spikes that a window may hold, as a mean
    and a standard deviation are. Both, and the 1 %, are our choice; that a spike's batches are best left out is of
    arXiv:2204.02311, section 5.1.
    """
    array = np.asarray(values, dtype=np.float64)
    median = float(np.median(array))
    spread = NORMAL * float(np.median(np.abs(array - median)))
    return median + bound * max(spread, LEAST_SPREAD * abs(median))


class Spikes:
    """The losses and gradient norms of the last `window` learned steps. Nothing is a spike before `warmup` of them."""

    def __init__(self, bound: float, window: int, warmup: int) -> None:
        self._bound = bound
        self._window = window
        self._warmup = warmup
        self.restore([], [])

    def limits(self) -> tuple[float, float] | None:
        """What the next loss and gradient norm may be at most; None during warm-up."""
        if len(self._losses) < self._warmup:
            return None
        return limit(self._losses, self._bound), limit(self._norms, self._bound)

    def learn(self, loss: float, norm: float) -> None:
        """Remember a step that was learned from."""
        self._losses.append(loss)
        self._norms.append(norm)

    def state(self) -> tuple[list[float], list[float]]:
        return list(self._losses), list(self._norms)

    def restore(self, losses: Sequence[float], norms: Sequence[float]) -> None:
        self._losses = deque(losses, self._window)
        self._norms = deque(norms, self._window)
