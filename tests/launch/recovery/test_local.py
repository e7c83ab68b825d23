"""A stage on local ranks that fail: started again, the failure named, written down, shown and told."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.compose import compose_stage
from configs.schema import Config
from launch.recovery import failures
from launch.recovery.local import train
from launch.restarts import LONGEST_PAUSE, back_off
from launch.runfolder import prepare
from launch.status import describe
from runtime.exits import DONE, FAILED
from tests.configs.recipes import write_recipe
from tests.launch.test_notify import Hook, hook
from tests.launch.test_restarts import failing

__all__ = ["hook"]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Config]:
    monkeypatch.delenv("MEGAPHONE_WEBHOOK", raising=False)
    told = [f"run.folder={tmp_path / 'run'}", "resilience.restarts=1", "resilience.restart_pause=0.2"]
    config = compose_stage(write_recipe(tmp_path / "recipe"), "tiny", "pretrain", told)
    prepare(config)
    yield config


def test_a_failure_is_named_in_the_log_the_records_status_and_to_the_webhook(
    config: Config, tmp_path: Path, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEGAPHONE_WEBHOOK", hook.url)
    flag = tmp_path / "started"
    body = (
        "import os, pathlib\nfrom runtime.log_lines import stamp_output\nstamp_output()\n"
        f"flag = pathlib.Path({str(flag)!r})\n"
        "if not flag.exists():\n    flag.touch()\n    raise ValueError('a shard was missing')\n"
    )
    assert train([sys.executable, "-c", body], config, 1) == DONE
    folder = Path(config.run.folder)
    (one,) = failures.read(folder)
    assert (one.rank, one.kind, one.why) == (0, "exception", "ValueError: a shard was missing")
    assert one.node and one.code == FAILED
    said = f"rank 0 on {one.node}: exception (ValueError: a shard was missing)"
    assert said in (folder / "logs/launcher.log").read_text()
    shown = "\n".join(describe(folder))
    assert said in shown and "starting again in 0.2 s, 1 of 1" in shown
    assert [sent["event"] for sent in hook.received] == ["started", "failed", "restarted", "stage_done"]
    failed = hook.received[1]
    assert (failed["rank"], failed["node"], failed["kind"]) == (0, one.node, "exception")
    assert said in failed["text"]


def test_a_run_that_only_fails_is_given_up_and_the_node_counted(config: Config, tmp_path: Path) -> None:
    began = time.monotonic()
    assert train(failing(tmp_path, [1]), config, 1) == FAILED
    assert time.monotonic() - began >= 0.2  # it waited
    found = failures.read(Path(config.run.folder))
    assert len(found) == 2 and "given up" in found[-1].next
    assert [one.kind for one in found] == ["exited", "exited"]


def test_status_counts_nodes_that_failed_before(config: Config) -> None:
    folder = Path(config.run.folder)
    for start in range(3):
        node = "node1" if start < 2 else "node2"
        failures.add(
            folder, failures.Failure(1e9, str(start), 1, start, node, "killed", False, "killed by SIGKILL", "-")
        )
    shown = "\n".join(describe(folder))
    assert re.search(r"last failure .*: rank 2 on node2: killed \(killed by SIGKILL\); -", shown)
    assert "blamed so far: node1 2 times" in shown


def test_pauses_double_up_to_a_bound() -> None:
    assert [back_off(tries, 5.0) for tries in range(4)] == [5.0, 10.0, 20.0, 40.0]
    assert back_off(1000, 5.0) == LONGEST_PAUSE
