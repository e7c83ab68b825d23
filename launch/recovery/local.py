"""A stage on this machine's ranks, started again after failures that are looked into, written down and told."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from configs.schema import Config, Event
from launch.notify import Notifier
from launch.recovery import failures
from launch.recovery.look import look
from launch.recovery.telling import SAID, tell_end, tell_failure
from launch.restarts import Failed, newest_checkpoint, run_again, say


def train(command: list[str], config: Config, ranks: int, asked: list[int] | None = None) -> int:
    """Run `command` as the ranks of a stage, as often as `resilience` allows; returns the exit code."""
    folder = Path(config.run.folder)
    with contextlib.closing(Notifier.of(config)) as notifier:
        notifier.tell(Event.started, f"started on {ranks} ranks", ranks=ranks)
        code = run_again(
            command,
            ranks=ranks,
            logs=folder / "logs",
            restarts=config.resilience.restarts,
            pause=config.resilience.restart_pause,
            progress=lambda: newest_checkpoint(folder),
            asked=asked,
            failed=_failed(folder, ranks, notifier),
        )
        if code in SAID:
            tell_end(notifier, code, SAID[code], newest_checkpoint(folder))
    return code


def _failed(folder: Path, ranks: int, notifier: Notifier) -> Callable[[Failed], None]:
    def failed(start: Failed) -> None:
        found = look(folder, start.began, start.ends, ranks)
        one = failures.failure(found, str(start.number), start.code, start.next)
        with contextlib.suppress(OSError):  # a full disk is what it may have failed of
            failures.add(folder, one)
        say(one.line, folder / "logs")
        tell_failure(notifier, one, again=start.again)

    return failed
