"""Counting what could not be read, and stopping when it is too much."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from data_pipeline.shards import DamagedSample
from runtime.exits import BadInput

JUDGED_FROM = 100  # samples read before the share of damaged ones means anything
UNJUDGED = frozenset({"too_long"})  # kinds that are left out and counted, but stop no run: there is no mistake
NAMED = 100  # damaged samples remembered by name


class Damage(NamedTuple):
    """What a tally counted in some stretch of reading: samples read, damaged ones by kind and by source, names of some.

    A tally counts for all sources of a mixture; whoever reads knows which one it was (`by`).
    """

    read: int
    kinds: dict[str, int]
    names: list[str]
    sources: dict[str, int]

    def by(self, source: str) -> Damage:
        """The same, all of it met in reading `source`."""
        count = sum(self.kinds.values())
        return self._replace(sources={source: count} if count else {})

    def plus(self, other: Damage) -> Damage:
        """What was counted in both stretches."""
        if not other.kinds:  # as nearly always, and a lane adds up one of each document
            return self._replace(read=self.read + other.read)
        kinds, sources = Counter(self.kinds), Counter(self.sources)
        kinds.update(other.kinds)
        sources.update(other.sources)
        return Damage(self.read + other.read, dict(kinds), [*self.names, *other.names][:NAMED], dict(sources))


NO_DAMAGE = Damage(0, {}, [], {})


class DamageTally:
    """Samples read, damaged ones by kind and by source (where they were merged in), and the names of the first."""

    def __init__(self, allowed_share: float) -> None:
        self.read = 0
        self.kinds: Counter[str] = Counter()
        self.sources: Counter[str] = Counter()
        self.names: list[str] = []
        self._allowed_share = allowed_share

    def add(self, damage: DamagedSample) -> None:
        """Count one damaged sample, read but left out."""
        self.kinds[damage.kind] += 1
        self._name(str(damage))

    def take(self) -> Damage:
        """What was counted since the last call, which is then forgotten here."""
        if not self.kinds:
            read, self.read = self.read, 0
            return NO_DAMAGE._replace(read=read)
        taken = Damage(self.read, dict(self.kinds), list(self.names), dict(self.sources))
        self.read, self.kinds, self.names, self.sources = 0, Counter(), [], Counter()
        return taken

    def merge(self, damage: Damage) -> None:
        """Count what another tally gave away. Raises BadInput as `judge` does."""
        self.read += damage.read
        if damage.kinds:
            self.kinds.update(damage.kinds)
            self.sources.update(damage.sources)
            for name in damage.names:
                self._name(name)
        self.judge()

    def judge(self) -> None:
        """Raises BadInput once more than the allowed share of at least 100 samples read was damaged."""
        if not self.kinds:
            return
        damaged = sum(count for kind, count in self.kinds.items() if kind not in UNJUDGED)
        if self.read >= JUDGED_FROM and damaged > self._allowed_share * self.read:
            named = next((name for name in self.names if not name.endswith(tuple(UNJUDGED))), "not named")
            raise BadInput(
                f"{damaged} of {self.read} samples read are damaged, more than loader.damaged_share "
                f"{self._allowed_share}; the first is {named}"
            )

    def _name(self, name: str) -> None:
        if len(self.names) < NAMED and name not in self.names:
            self.names.append(name)
