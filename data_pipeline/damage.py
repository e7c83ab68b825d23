"""Counting what could not be read, and stopping when it is too much."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from data_pipeline.shards import DamagedSample
from runtime.exits import BadInput

JUDGED_FROM = 100  # samples read before the share of damaged ones means anything
NAMED = 100  # damaged samples remembered by name


class Damage(NamedTuple):
    """What a tally counted in some stretch of reading."""

    read: int
    kinds: dict[str, int]
    names: list[str]

    def plus(self, other: Damage) -> Damage:
        """What was counted in both stretches."""
        kinds = Counter(self.kinds)
        kinds.update(other.kinds)
        return Damage(self.read + other.read, dict(kinds), [*self.names, *other.names][:NAMED])


NO_DAMAGE = Damage(0, {}, [])


class DamageTally:
    """Samples read, damaged ones by kind, and the names of the first of them."""

    def __init__(self, allowed_share: float) -> None:
        self.read = 0
        self.kinds: Counter[str] = Counter()
        self.names: list[str] = []
        self._allowed_share = allowed_share

    def add(self, damage: DamagedSample) -> None:
        """Count one damaged sample, read but left out."""
        self.kinds[damage.kind] += 1
        self._name(str(damage))

    def take(self) -> Damage:
        """What was counted since the last call, which is then forgotten here."""
        taken = Damage(self.read, dict(self.kinds), list(self.names))
        self.read, self.kinds, self.names = 0, Counter(), []
        return taken

    def merge(self, damage: Damage) -> None:
        """Count what another tally gave away. Raises BadInput as `judge` does."""
        self.read += damage.read
        self.kinds.update(damage.kinds)
        for name in damage.names:
            self._name(name)
        self.judge()

    def judge(self) -> None:
        """Raises BadInput once more than the allowed share of at least 100 samples read was damaged."""
        damaged = self.kinds.total()
        if self.read >= JUDGED_FROM and damaged > self._allowed_share * self.read:
            raise BadInput(
                f"{damaged} of {self.read} samples read are damaged, more than loader.damaged_share "
                f"{self._allowed_share}; the first is {self.names[0]}"
            )

    def _name(self, name: str) -> None:
        if len(self.names) < NAMED and name not in self.names:
            self.names.append(name)
