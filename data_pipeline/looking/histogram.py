"""Histograms of numbers whose range nobody knows beforehand, in memory that does not grow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

BINS = 1 << 15  # kept, at most: a file of three hours among seconds must not blur the seconds; fewer are shown
_NARROWEST = 2.0**-20


@dataclass
class Histogram:
    """Counts of finite numbers in bins [k w, (k + 1) w), where w is the narrowest power of two that needs no more than
    BINS of them; so the order in which numbers come changes nothing. Sums are exact to float64."""

    width: float = _NARROWEST
    first: int = 0  # k of the first bin
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    number: int = 0  # of finite values
    unknown: int = 0  # of values that are not numbers
    total: float = 0.0
    least: float = np.inf
    most: float = -np.inf

    def add(self, values: np.ndarray) -> None:
        """Count `values`, float [n]; NaN and infinity are counted apart."""
        values = np.asarray(values, np.float64)
        finite = values[np.isfinite(values)]
        self.unknown += len(values) - len(finite)
        if not len(finite):
            return
        self.number += len(finite)
        self.total += float(finite.sum())
        self.least, self.most = min(self.least, float(finite.min())), max(self.most, float(finite.max()))
        while np.floor(self.most / self.width) - np.floor(self.least / self.width) >= BINS:
            self._widen()
        bins = np.floor(finite / self.width).astype(np.int64)
        if not len(self.counts):
            self.first = int(bins.min())
        low = min(int(bins.min()), self.first)
        high = max(int(bins.max()), self.first + len(self.counts) - 1)
        counts = np.bincount(bins - low, minlength=high - low + 1)
        counts[self.first - low : self.first - low + len(self.counts)] += self.counts
        self.first, self.counts = low, counts

    @property
    def mean(self) -> float:
        return self.total / self.number if self.number else float("nan")

    def quantile(self, share: float) -> float:
        """The value below which `share` of the numbers lie, as if each bin were filled evenly; NaN where there are
        none. Off by less than a bin's width."""
        if not self.number:
            return float("nan")
        ends = np.cumsum(self.counts)
        wanted = share * self.number
        at = min(int(np.searchsorted(ends, wanted)), len(ends) - 1)
        before = ends[at] - self.counts[at]
        inside = (wanted - before) / max(int(self.counts[at]), 1)
        return float(np.clip((self.first + at + inside) * self.width, self.least, self.most))

    def bars(self, most: int = 48, beyond: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """At most `most` bins to show: their edges, float64 [bars + 1], and counts, int64 [bars]. The share `beyond` of
        the numbers at either end is left out."""
        if not self.number:
            return np.zeros(1), np.zeros(0, np.int64)
        low = int(self.quantile(beyond) // self.width) - self.first
        high = int(self.quantile(1 - beyond) // self.width) - self.first + 1
        width, first, counts = self.width, self.first + max(low, 0), self.counts[max(low, 0) : high]
        while len(counts) > most:
            width, (first, counts) = 2 * width, _in_pairs(first, counts)
        return (first + np.arange(len(counts) + 1)) * width, counts

    def data(self) -> dict[str, Any]:
        """JSON-ready: number, unknown, mean, least, most, quantiles and the bars."""
        edges, counts = self.bars()
        told: dict[str, Any] = {"number": self.number, "unknown": self.unknown}
        if self.number:
            told |= {"mean": self.mean, "least": self.least, "most": self.most}
            told |= {f"p{round(100 * share):02d}": self.quantile(share) for share in (0.05, 0.5, 0.95)}
        return told | {"edges": edges.tolist(), "counts": counts.tolist()}

    def _widen(self) -> None:
        self.width *= 2
        self.first, self.counts = _in_pairs(self.first, self.counts)


def _in_pairs(first: int, counts: np.ndarray) -> tuple[int, np.ndarray]:
    """The bins of twice the width: where they begin, and their counts."""
    padded = np.concatenate([np.zeros(first % 2, np.int64), counts])
    padded = np.concatenate([padded, np.zeros(len(padded) % 2, np.int64)])
    return first // 2, padded.reshape(-1, 2).sum(axis=1)
