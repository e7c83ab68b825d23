"""What a build left out: counted by kind, with a few named, and the share of damage at which it stops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_pipeline.sources.recording import UnreadableAudio
from runtime.exits import BadInput

NAMED = 5  # examples kept of each kind
JUDGED_FROM = 100  # utterances read before the share of damaged ones means anything

# Sound that is not what its source says it is. Other kinds are choices (no_text), or speech that does not serve
# (silent, too_short, alignment, endless); they are counted too, and stop nothing.
DAMAGE = frozenset({*UnreadableAudio.KINDS, "segment"})


class LeftOut:
    """Utterances left out by kind. A recording that gives no sound counts as all the segments that it has."""

    def __init__(self) -> None:
        self._kinds: dict[str, dict[str, Any]] = {}

    def add(self, kind: str, where: str, count: int = 1) -> None:
        self._merge(kind, count, [where])

    def merge(self, described: Mapping[str, Any]) -> None:
        """Add what `describe` gave."""
        for kind, held in described.items():
            self._merge(kind, held["count"], held["examples"])

    def _merge(self, kind: str, count: int, examples: list[str]) -> None:
        held = self._kinds.setdefault(kind, {"count": 0, "examples": []})
        held["count"] += count
        held["examples"] += examples[: NAMED - len(held["examples"])]

    def describe(self) -> dict[str, Any]:
        """{kind: {"count": n, "examples": [...]}}, by name of kind."""
        return {
            kind: {"count": held["count"], "examples": [*held["examples"]]}
            for kind, held in sorted(self._kinds.items())
        }

    @property
    def damaged(self) -> int:
        return sum(held["count"] for kind, held in self._kinds.items() if kind in DAMAGE)

    def line(self) -> str:
        """One line for people; "" where nothing was left out."""
        return ", ".join(
            f"{held['count']} {kind} (such as {held['examples'][0]})" for kind, held in self.describe().items()
        )

    def judge(self, kept: int, allowed: float) -> None:
        """Raises BadInput once more than `allowed`, a share, of at least 100 utterances was damaged; `kept` were
        not."""
        read = kept + self.damaged
        if read >= JUDGED_FROM and self.damaged > allowed * read:
            worst = {kind: held for kind, held in self.describe().items() if kind in DAMAGE}
            named = "; ".join(f"{held['count']} {kind}, such as {held['examples'][0]}" for kind, held in worst.items())
            limit = f"more than corpus.damaged_share {allowed}"
            raise BadInput(f"{self.damaged} of {read} utterances could not be read, {limit}: {named}")
