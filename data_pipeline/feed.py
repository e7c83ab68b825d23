"""Feeds: where a rank's lanes are read. All hand out the same packs; they differ in who does the work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from data_pipeline.batch import Pack
from data_pipeline.damage import Damage
from data_pipeline.lanes import Lane
from data_pipeline.prefetch import Prefetcher
from runtime.exits import BadInput


class Served(NamedTuple):
    """A lane's next pack (None: it has no more), its state after that pack, and the damage that came with it.

    `refusal`: instead of a pack, the line of a BadInput that reading ended in.
    """

    lane: int
    pack: Pack | None
    state: dict[str, Any]
    damage: Damage
    refusal: str | None = None


class Feed(Protocol):
    """Hands out the packs of some lanes in turn, for ever."""

    def start(self, states: Mapping[int, dict[str, Any]], turn: int) -> None:
        """Go to `states` by lane, where the `turn`-th of the feed's lanes is next. What was read ahead is dropped."""

    def next(self) -> Served:
        """The next lane's pack. Not asked again after a refusal. Raises whatever else reading raised."""

    @property
    def ready(self) -> int:
        """Packs read ahead that `next` would give without waiting."""

    def close(self) -> None:
        """Stop reading ahead; `start` comes before the next `next`."""


def serve(lanes: Sequence[Lane]) -> Iterator[Served]:
    """Packs of `lanes` in turn. A BadInput is served as a line; then the iterator ends."""
    while True:
        for lane in lanes:
            try:
                pack = lane.next_pack()
            except BadInput as error:
                yield Served(lane.number, None, {}, lane.take_damage(), str(error))
                return
            yield Served(lane.number, pack, lane.state(), lane.take_damage())


class LocalFeed:
    """Lanes read in this process, by a thread that is at most `ahead` packs ahead, or when asked where `ahead` is 0."""

    def __init__(self, lanes: Sequence[Lane], ahead: int) -> None:
        self._lanes = lanes
        self._ahead = ahead
        self._prefetcher: Prefetcher[Served] | None = None

    def start(self, states: Mapping[int, dict[str, Any]], turn: int) -> None:
        self.close()
        for lane in self._lanes:
            lane.restore(states[lane.number])
        self._served = serve([*self._lanes[turn:], *self._lanes[:turn]])

    def next(self) -> Served:
        if not self._ahead:
            return next(self._served)
        if self._prefetcher is None:
            self._prefetcher = Prefetcher(self._served.__next__, self._ahead)
        return self._prefetcher.next()

    @property
    def ready(self) -> int:
        return self._prefetcher.ready if self._prefetcher else 0

    def close(self) -> None:
        if self._prefetcher:
            self._prefetcher.close()
            self._prefetcher = None
