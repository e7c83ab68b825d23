"""Notifications: one JSON object an event, sent to a webhook beside the run, which neither waits for it nor depends on
it.

The URL of a webhook often is all that protects it. It is taken out of words and configs into the environment as soon
as they are read, so that no saved config, script, report or log ever holds more than its host.
"""

from __future__ import annotations

import json
import os
import queue
import re
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from configs.schema import Config, Event, NotifyConfig
from runtime.exits import BadInput

WEBHOOK = "MEGAPHONE_WEBHOOK"
"""Variable with the URL of the webhook; also how it reaches the jobs of a run."""
_KEY = "notify.webhook"
_HIDDEN = "/***"


def hide_words(words: Sequence[str]) -> list[str]:
    """The words of a command line with the URL taken out of them, into the environment."""
    if any(word.lstrip("+").startswith("notify=") for word in words):
        raise BadInput(f"notify=...: give its keys one by one, such as {_KEY}=<URL>")
    return [
        f"{_KEY}='{_hide(word.partition('=')[2].strip(chr(39) + chr(34)))}'" if _tells(word) else word for word in words
    ]


def hide(config: Config) -> Config:
    """The same for a config, which is changed and returned."""
    if config.notify.webhook is not None:
        config.notify.webhook = _hide(config.notify.webhook)
    return config


def _tells(word: str) -> bool:
    key, equals, value = word.partition("=")
    return bool(equals) and key.lstrip("+") == _KEY and value not in ("null", "")


def _hide(url: str) -> str:
    """What may be shown of a URL. Raises BadInput, without it, where it is none of a webhook."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or re.search(r"[\s\x00-\x1f]", url):
        raise BadInput(f"{_KEY}: not a URL that begins with https:// or http:// and names a host (it is not shown)")
    host = parts.hostname if parts.port is None else f"{parts.hostname}:{parts.port}"
    if parts.path != _HIDDEN:
        os.environ[WEBHOOK] = url
    return f"{parts.scheme}://{host}{_HIDDEN}"


class Notifier:
    """Sends events of one run from a thread of its own, in order; `close` waits for it no longer than `timeout`."""

    def __init__(self, config: NotifyConfig, run: str, stage: str, folder: Path) -> None:
        self._url = os.environ.get(WEBHOOK)
        self._wanted = frozenset(config.events)
        self._timeout = config.timeout
        self._about = {"run": run, "stage": stage, "folder": str(folder)}
        self._queue: queue.SimpleQueue[dict[str, object] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._said: set[str] = set()
        if config.webhook is not None and self._url is None:
            self._say(f"{config.webhook} is not told: the rest of its URL is not saved; set ${WEBHOOK}")

    @classmethod
    def of(cls, config: Config) -> Notifier:
        return cls(config.notify, config.run.name, config.stage.name, Path(config.run.folder).absolute())

    def tell(self, event: Event, text: str, **facts: object) -> None:
        """Send an event, if there is somebody who wants it; returns at once. `text` is one line for people."""
        if self._url is None or event not in self._wanted:
            return
        about = " ".join(part for part in (self._about["run"], self._about["stage"]) if part)
        said = {"text": f"{about}: {text}", "event": event.value, "time": time.time(), **self._about, **facts}
        self._queue.put(said)
        if self._thread is None:
            self._thread = threading.Thread(target=self._send_all, name="notifier", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Let what is still to be sent go out, within `timeout` seconds."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(self._timeout)
            self._thread = None

    def _send_all(self) -> None:
        while (said := self._queue.get()) is not None:
            try:
                self._send(said)
            except Exception as error:  # whatever it is, it is the webhook's
                self._say(f"a notification was not delivered: {_reason(error)}")

    def _send(self, said: dict[str, object]) -> None:
        assert self._url is not None
        request = urllib.request.Request(
            self._url, json.dumps(said).encode(), {"Content-Type": "application/json"}, method="POST"
        )
        urllib.request.urlopen(request, timeout=self._timeout).close()

    def _say(self, line: str) -> None:
        """Once each: a webhook that is away for a week is one line."""
        if line not in self._said:
            self._said.add(line)
            print(f"megaphone: warning: {line}", file=sys.stderr, flush=True)


def _reason(error: Exception) -> str:
    """Why, without the URL, which the text of some errors quotes."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP status {error.code}"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return "no answer in time"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return type(cause).__name__
