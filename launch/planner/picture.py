"""Timelines of simulated pipelines, as one SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from launch.planner.order import Pass
from launch.planner.schedule import Interval, Timeline

WIDTH, MARGIN, ROW, GAP, HEAD = 1200, 64, 14, 3, 40
MOST_RUNS = 120  # rectangles of a row: more of them than a screen can show are drawn as one
_COLOURS = {Pass.forward: ("#3b82c4", "#8fbbe0"), Pass.backward: ("#d9822b", "#f2bd85")}  # even and odd model chunks
_BUBBLE = "#eceff3"
_STYLE = "text{font:12px system-ui,sans-serif;fill:#222}.t{font-weight:600;font-size:13px}.n{fill:#667}"


@dataclass(frozen=True)
class Drawn:
    """A step and the line above it. shown: seconds from its beginning that are drawn, None: all."""

    title: str
    timeline: Timeline
    shown: float | None = None


def svg(pictures: Sequence[Drawn]) -> str:
    """One below the other, each on a scale of its own: a row a pipeline rank, forward passes blue, backward ones
    orange, every second model chunk paler, waiting grey."""
    parts: list[str] = []
    top = 8
    for picture in pictures:
        parts += _picture(picture, top)
        top += HEAD + picture.timeline.costs.ranks * (ROW + GAP) + 30
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}">'
        f'<style>{_STYLE}</style><rect width="{WIDTH}" height="{top}" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _picture(picture: Drawn, top: int) -> Iterator[str]:
    timeline = picture.timeline
    shown = min(picture.shown or timeline.pipeline, timeline.pipeline)
    scale = (WIDTH - MARGIN - 12) / shown
    yield f'<text class="t" x="12" y="{top + 14}">{escape(picture.title)}</text>'
    yield from _legend(top + 14)
    first = top + HEAD - 12
    for rank, passes in enumerate(timeline.passes):
        y = first + rank * (ROW + GAP)
        yield f'<text class="n" x="12" y="{y + 11}">rank {rank}</text>'
        yield f'<rect x="{MARGIN}" y="{y}" width="{shown * scale:.1f}" height="{ROW}" fill="{_BUBBLE}"/>'
        outlines: dict[str, list[str]] = {}
        for kind, odd, start, end in _runs(passes, shown):
            width = max((min(end, shown) - start) * scale - 0.3, 0.2)
            outline = f"M{MARGIN + start * scale:.1f} {y}h{width:.1f}v{ROW}h-{width:.1f}z"
            outlines.setdefault(_COLOURS[kind][odd], []).append(outline)
        for colour, drawn in outlines.items():
            yield f'<path fill="{colour}" d="{"".join(drawn)}"/>'
    y = first + timeline.costs.ranks * (ROW + GAP) + 12
    yield f'<text class="n" x="{MARGIN}" y="{y}">0 s</text>'
    said = f"{shown:.2f} s" + (f" of {timeline.pipeline:.2f} s" if shown < timeline.pipeline else "")
    yield f'<text class="n" x="{WIDTH - 12}" y="{y}" text-anchor="end">{said}</text>'


def _legend(y: int) -> Iterator[str]:
    said = ((_COLOURS[Pass.forward][0], "forward"), (_COLOURS[Pass.backward][0], "backward"), (_BUBBLE, "waiting"))
    for x, (colour, name) in zip(range(WIDTH - 240, WIDTH, 80), said, strict=False):
        yield f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{colour}"/>'
        yield f'<text x="{x + 16}" y="{y}">{name}</text>'


def _runs(passes: Sequence[Interval], shown: float) -> Iterator[tuple[Pass, int, float, float]]:
    """What is drawn of a row up to `shown`: passes, neighbours of one colour together where there are too many."""
    drawn = [one for one in passes if one.start < shown]
    together = len(drawn) > MOST_RUNS
    run: tuple[Pass, int, float, float] | None = None
    for one in drawn:
        odd = one.chunk % 2
        if run is not None and together and run[:2] == (one.kind, odd) and one.start <= run[3]:
            run = (*run[:3], one.end)
            continue
        if run is not None:
            yield run
        run = (one.kind, odd, one.start, one.end)
    if run is not None:
        yield run
