"""Figures with the range that chance leaves them: a bootstrap over the items of a set (Bisani and Ney 2004)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 1000
CONFIDENCE = 0.95
PERCENT = "%"


@dataclass(frozen=True)
class Figure:
    """A value; `low` and `high` hold it with 95 % confidence, None where that cannot be said."""

    value: float
    unit: str = ""
    low: float | None = None
    high: float | None = None


def ratio(
    above: Sequence[float], below: Sequence[float], unit: str = "", form: Callable[[float], float] = float
) -> Figure:
    """`form` of the sum of `above` over the sum of `below`, one of each an item. Items are drawn with replacement,
    1,000 times, always with the same seed; the range is between the 2.5th and the 97.5th percentile."""
    over, under = np.asarray(above, np.float64), np.asarray(below, np.float64)
    value = form(float(over.sum() / under.sum()))
    if len(over) < 2:
        return Figure(value, unit)
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(DRAWS):
        rows = rng.integers(len(over), size=len(over))
        if total := under[rows].sum():
            drawn.append(form(float(over[rows].sum() / total)))
    low, high = np.percentile(drawn, [100 * (1 - CONFIDENCE) / 2, 100 * (1 + CONFIDENCE) / 2])
    return Figure(value, unit, float(low), float(high))


def share(above: Sequence[float], below: Sequence[float]) -> Figure:
    """The same in per cent."""
    return ratio(above, below, PERCENT, lambda value: 100 * value)


def mean(values: Sequence[float], unit: str = "") -> Figure:
    return ratio(values, [1.0] * len(values), unit)


def perplexity(nats: Sequence[float], tokens: Sequence[float]) -> Figure:
    """exp of the mean negative log-likelihood of a token."""
    return ratio(nats, tokens, "a token", lambda value: math.exp(min(value, 700.0)))
