"""What is known of a node: what its ranks report, and how the reports of a node become one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Report:
    """What one rank, or one node, has measured; it travels as JSON.

    figures: numbers in the units of `figures.figures`, the lower the worse. facts: what has to be equal on all nodes.
    troubles: what is wrong with the node whatever others have. lacks: what is wrong with the things that nodes share,
    as seen from here: where all see it, it is no node's fault. notes: what is worth a line and no reason to stop.
    peers: GB/s with other nodes, by their names, the slower direction.
    """

    figures: dict[str, float] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)
    lacks: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    peers: dict[str, float] = field(default_factory=dict)

    def take(self, other: Report) -> None:
        """Add what another check, or another rank of the node, has found; of a figure that both have, the lower."""
        for name, value in other.figures.items():
            self.figures[name] = min(value, self.figures.get(name, value))
        for name, value in other.peers.items():
            self.peers[name] = min(value, self.peers.get(name, value))
        self.facts |= other.facts
        for mine, others in ((self.troubles, other.troubles), (self.lacks, other.lacks), (self.notes, other.notes)):
            mine += [line for line in others if line not in mine]


@dataclass(frozen=True)
class Finding:
    """One reason why the job should not go on like this.

    nodes: those that are sick; none where all are alike, or where it cannot be told which of two is. said: what was
    measured, beside the others' median or what is needed, in one line.
    """

    check: str
    nodes: tuple[str, ...]
    said: str


def together(reports: Iterable[Report]) -> Report:
    """The report of a node, of its ranks'."""
    whole = Report()
    for report in reports:
        whole.take(report)
    return whole
