"""Whom a run tells how it is doing."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class Event(Enum):
    started = "started"  # ranks begin, or begin again
    stage_done = "stage_done"  # a stage was trained to its end
    failed = "failed"  # a start failed, with whom it is blamed on; or a job's input was refused, or the run halted
    restarted = "restarted"  # it is being started again after that
    stopped = "stopped"  # it stopped early on request, its progress saved


@dataclass
class NotifyConfig:
    """A webhook that is sent a JSON object by POST for each event: event, time, run, stage, folder, text, and for
    failures rank, node, kind, why. It can neither fail nor hold up a run. The local launcher tells, and under Slurm
    the batch script of each job, from its first node."""

    # The URL is a secret: it is saved and shown with its host alone. None, or a saved one: $MEGAPHONE_WEBHOOK, if set.
    webhook: str | None = None
    events: list[Event] = field(default_factory=lambda: list(Event))
    timeout: float = 5.0  # seconds for one POST, and at most at the end of a command for what is still to be sent
