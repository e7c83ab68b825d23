"""Which part of a piece of work one process does, where many do it: items n with n mod tasks = task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Share:
    """Task number `task` of `tasks`; the only one of one does all."""

    task: int = 0
    tasks: int = 1

    def of(self, items: Sequence[Item]) -> list[Item]:
        return list(items[self.task :: self.tasks])

    def __str__(self) -> str:
        return f"task {self.task} of {self.tasks}"
