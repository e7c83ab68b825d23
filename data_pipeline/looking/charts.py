"""Charts of a corpus as pictures in SVG: where each bar and mark stands. The template draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from data_pipeline.looking.histogram import Histogram
from data_pipeline.looking.pages import number, short

WIDTH, HEIGHT = 360, 128  # of a picture, without the numbers below it
_BEYOND = 0.005  # share of the numbers at either end that a picture leaves out


class Bar(NamedTuple):
    x: float
    y: float
    width: float
    height: float
    tip: str


class Mark(NamedTuple):
    """A number of the axis, or a line through the picture, at `x`."""

    x: float
    label: str


@dataclass(frozen=True)
class Bars:
    """A histogram. `colour` names a colour of the style sheet."""

    title: str
    note: str
    colour: str
    bars: list[Bar]
    ticks: list[Mark]
    median: Mark


@dataclass(frozen=True)
class Curve:
    """How often the codes of one table are used, the most frequent first: `path` in a picture whose height is the
    share of the most frequent one, logarithmic over four decades; `even` is where all would be, were they even."""

    title: str
    facts: list[tuple[str, str]]
    colour: str
    path: str
    even: float
    used: float = field(default=0.0)


def histogram_chart(title: str, held: Histogram, colour: str) -> Bars:
    """The picture of `held`, which has numbers."""
    if held.least == held.most:
        tip = f"{number(held.least)}: {held.number:,}"
        only = Mark(WIDTH / 2, f"all {number(held.least)}")
        return Bars(title, f"{short(held.number)} values", colour, [Bar(WIDTH / 2 - 6, 0, 12, HEIGHT, tip)], [], only)
    edges, counts = held.bars(48, _BEYOND)
    low, high = float(edges[0]), float(edges[-1])
    highest = max(1, int(counts.max()))

    def at(value: float) -> float:
        return WIDTH * (value - low) / (high - low)

    bars = []
    for left, right, count in zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True):
        height = max(1.0, HEIGHT * count / highest) if count else 0.0
        tip = f"{number(left)} to {number(right)}: {count:,}"
        bars.append(Bar(at(left) + 0.5, HEIGHT - height, max(0.5, at(right) - at(left) - 1), height, tip))
    median = held.quantile(0.5)
    outside = held.number - int(counts.sum())
    notes = [f"{short(held.number)} values", f"mean {number(held.mean)}"]
    notes += [f"{outside:,} beyond"] if outside else []
    notes += [f"{held.unknown:,} without"] if held.unknown else []
    middle = Mark(min(max(at(median), 0.0), float(WIDTH)), f"median {number(median)}")
    return Bars(title, ", ".join(notes), colour, bars, [Mark(at(v), _label(v)) for v in _ticks(low, high)], middle)


def usage_chart(title: str, counts: np.ndarray, facts: list[tuple[str, str]], colour: str) -> Curve:
    """The picture of how often each code of a table was seen, int64 [size]; one at least was."""
    shares = np.sort(counts)[::-1] / counts.sum()
    seen = shares[shares > 0]
    places = np.unique(np.geomspace(1, len(seen), 160).astype(int)) - 1
    scale = WIDTH / len(counts)

    def height(share: float) -> float:
        return float(HEIGHT * min(1.0, max(0.0, -np.log10(share / shares[0]) / 4)))

    points = [f"{scale * place:.1f} {height(float(seen[place])):.1f}" for place in places.tolist()]
    path = f"M0 {HEIGHT}L" + "L".join(points) + f"L{scale * len(seen):.1f} {points[-1].split()[1]}V{HEIGHT}Z"
    return Curve(title, facts, colour, path, height(1 / len(counts)), len(seen) / len(counts))


def _label(value: float) -> str:
    return short(value) if value >= 10_000 else number(value)


def _ticks(low: float, high: float, wanted: int = 6) -> Sequence[float]:
    """Round numbers from `low` to `high`, about `wanted`."""
    rough = (high - low) / wanted
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return [float(round(k * step, 10)) for k in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]
