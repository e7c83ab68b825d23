"""Collects what a failed start has left in its run folder, and judges it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.logs.show import Wanted, merged
from launch.logs.sources import sources
from launch.recovery.blame import Blame, Evidence, blame
from runtime.log_lines import Level

_WINDOW = 2 * 3600.0  # seconds before the end that are looked at: longer than any time-out of a collective
_STILL = 10.0  # seconds by which a heartbeat has to be older than the newest, to have stopped before it


def look(
    run: Path, since: float, ends: Mapping[int, int], ranks: int, *, lost: Sequence[str] = (), now: float | None = None
) -> Blame | None:
    """Who is to blame for a start that began at `since` (seconds since 1970) and has just failed; see `Evidence`."""
    from train.resilience import heartbeats

    began = max(since, (time.time() if now is None else now) - _WINDOW)
    lines = merged(sources(run), Wanted(level=Level.debug, since=began))
    beats = {rank: beat for rank, beat in heartbeats.read(run).items() if beat.time >= since}
    nodes = {rank: beat.host.partition(".")[0] for rank, beat in beats.items()}
    written = {rank: heartbeats.written_at(run, rank) for rank in beats}
    return blame(Evidence(lines, ends, nodes, lost, _silent(written, ends), ranks))


def _silent(written: Mapping[int, float], ends: Mapping[int, int]) -> list[int]:
    """Ranks whose heartbeat stopped before the others', by the clock of the file system (`written`), and that did not
    end by themselves."""
    newest = max(written.values(), default=0.0)
    return sorted(rank for rank, at in written.items() if newest - at > _STILL and rank not in ends)
