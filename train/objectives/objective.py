"""What the loop and the journal ask of an objective, beside what the engines do."""

from __future__ import annotations

from typing import Protocol

from train.engines.protocol import Objective


class StageObjective(Objective, Protocol):
    """An objective as a stage uses it: `averages` names its terms."""

    @property
    def main(self) -> str:
        """The term that is told as the loss, and that spikes are looked for in."""

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources of the mixture that it tells apart: `collate` numbers their places for it."""

    def averages(self, sums: list[float], counts: list[float]) -> dict[str, float]:
        """Global averages by name, `main` among them, of what an engine added up; a term without a count is left
        out."""
