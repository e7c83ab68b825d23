"""What a webhook is told of a stage's end: the same by whoever started its ranks."""

from __future__ import annotations

from configs.schema import Event
from launch.notify import Notifier
from launch.recovery.failures import Failure
from runtime.exits import BAD_INPUT, DONE, HALTED, STOPPED_EARLY

SAID = {
    DONE: "trained to its end",
    STOPPED_EARLY: "stopped early, its progress saved",
    BAD_INPUT: "its configuration or input was refused",
    HALTED: "the run halted: somebody has to decide",
}
_EVENTS = {DONE: Event.stage_done, STOPPED_EARLY: Event.stopped}


def tell_end(notifier: Notifier, code: int, text: str, checkpoint: str | None) -> None:
    """That a start ended with `code`; anything but done and stopped early is a failure."""
    notifier.tell(_EVENTS.get(code, Event.failed), text, code=code, checkpoint=checkpoint)


def tell_failure(notifier: Notifier, one: Failure, *, again: bool) -> None:
    """Whom a failed start is blamed on, and whether it is started again."""
    told = {"rank": one.rank, "node": one.node, "kind": one.kind, "why": one.why, "code": one.code}
    notifier.tell(Event.failed, f"{one.line}; {one.next}", **told)
    if again:
        notifier.tell(Event.restarted, one.next)
