"""Notifications to a real HTTP server: what it gets, and that a run never waits for it; URLs stay secret."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from configs.compose import to_yaml
from configs.schema import Event, NotifyConfig
from launch.notify import WEBHOOK, Notifier, hide_words
from launch.runfolder import prepare
from launch.selection import read_words
from runtime.exits import BadInput
from tests.configs.recipes import write_recipe

SECRET = "token-that-nobody-sees"


class Hook:
    """A webhook on this host, at one of its addresses: answers with `status`, after `hang` is set."""

    def __init__(self, status: int = 200, hangs: bool = False, address: str = "127.0.0.1") -> None:
        self.received: list[dict[str, Any]] = []
        self.types: list[str | None] = []
        self.go_on = threading.Event()
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.received.append(json.loads(body))
                hook.types.append(self.headers["Content-Type"])
                if hangs:
                    hook.go_on.wait(30)
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer((address, 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://{address}:{self.server.server_port}/{SECRET}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self.go_on.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def hook() -> Iterator[Hook]:
    one = Hook()
    yield one
    one.close()


@pytest.fixture(autouse=True)
def no_webhook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WEBHOOK, "")  # so that what a test leaves there goes with it
    monkeypatch.delenv(WEBHOOK)


def notifier(url: str, folder: Path, **settings: Any) -> Notifier:
    os.environ[WEBHOOK] = url
    return Notifier(NotifyConfig(**settings), "run", "pretrain", folder)


def test_events_arrive_as_json_in_order_and_only_those_wanted(hook: Hook, tmp_path: Path) -> None:
    one = notifier(hook.url, tmp_path, events=[Event.started, Event.failed])
    one.tell(Event.started, "started on 2 ranks", ranks=2)
    one.tell(Event.restarted, "again")
    one.tell(Event.failed, "rank 1 on node2: killed", rank=1)
    one.close()
    assert [sent["event"] for sent in hook.received] == ["started", "failed"]
    sent = hook.received[1]
    assert sent["text"] == "run pretrain: rank 1 on node2: killed"
    assert (sent["run"], sent["stage"], sent["folder"], sent["rank"]) == ("run", "pretrain", str(tmp_path), 1)
    assert abs(sent["time"] - time.time()) < 60
    assert hook.types == ["application/json"] * 2


def test_a_webhook_that_hangs_holds_nothing_up(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    hook = Hook(hangs=True)
    one = notifier(hook.url, tmp_path, timeout=0.5)
    began = time.monotonic()
    for _ in range(50):
        one.tell(Event.failed, "failed")
    one.close()
    assert time.monotonic() - began < 15.0  # neither the answer, nor fifty time-outs
    hook.close()
    assert 1 <= len(hook.received) < 50


def test_what_goes_wrong_is_one_line_without_the_url(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    hook = Hook(status=500)
    one = notifier(hook.url, tmp_path)
    one.tell(Event.started, "started")
    one.tell(Event.stage_done, "done")
    one.close()
    hook.close()
    assert len(hook.received) == 2
    refused = notifier(hook.url, tmp_path)  # nobody listens there any more
    refused.tell(Event.started, "started")
    refused.close()
    said = capfd.readouterr().err
    assert said.count("HTTP status 500") == 1 and "Connection refused" in said
    assert SECRET not in said


def test_a_url_is_kept_out_of_configs_words_and_records(tmp_path: Path) -> None:
    url = f"https://hooks.example:8443/{SECRET}?key={SECRET}"
    recipe = write_recipe(tmp_path / "recipe")
    words = hide_words([f"recipe={recipe}", "scale=tiny", f"notify.webhook={url}", f"run.folder={tmp_path / 'run'}"])
    assert not any(SECRET in word for word in words)
    assert os.environ[WEBHOOK] == url
    config = read_words([*words, "stage=pretrain"]).one()
    assert config.notify.webhook == "https://hooks.example:8443/***"
    assert SECRET not in to_yaml(config)
    prepare(config)
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert files and not any(SECRET in file.read_text() for file in files)
    assert os.environ[WEBHOOK] == url  # reading what is hidden already changes nothing


def test_a_url_with_a_password_in_a_word_that_adds_a_key(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe")
    url = f"http://user:{SECRET}@127.0.0.1/x"
    config = read_words([f"recipe={recipe}", "scale=tiny", "stage=pretrain", f"+notify.webhook={url}"]).one()
    assert config.notify.webhook == "http://127.0.0.1/***"


@pytest.mark.parametrize("url", [f"ftp://host/{SECRET}", f"{SECRET}", f"https:///{SECRET}", f"https://host:x/{SECRET}"])
def test_what_is_no_webhook_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(BadInput, match=r"notify\.webhook") as refused:
        hide_words([f"notify.webhook={url}"])
    assert SECRET not in str(refused.value)


def test_a_saved_config_without_its_url_says_what_to_set(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    one = Notifier(NotifyConfig(webhook="https://hooks.example/***"), "run", "pretrain", tmp_path)
    one.tell(Event.started, "started")
    one.close()
    assert f"set ${WEBHOOK}" in capfd.readouterr().err
