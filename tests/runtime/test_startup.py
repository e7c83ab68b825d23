"""The count of what a start's time goes into, over real processes."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from runtime import startup

RANK = """
import json
from runtime import startup
startup.begin_with_process(again=False)
startup.passed("a rank")
print(json.dumps(startup.done()))
"""


@pytest.fixture(autouse=True)
def nobody_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(startup.VARIABLE, "0")  # so that it is put back
    monkeypatch.delenv(startup.VARIABLE)


def test_phases_go_on_in_another_process_and_add_up() -> None:
    began = time.monotonic()
    startup.begin()
    time.sleep(0.05)
    startup.passed("config")
    told = json.loads(subprocess.run([sys.executable, "-c", RANK], capture_output=True, text=True, check=True).stdout)
    assert list(told) == ["config", "a rank"]
    assert told["config"] >= 0.045 and told["a rank"] > 0
    assert sum(told.values()) <= time.monotonic() - began + 0.002


def test_a_rank_that_nobody_counts_for_begins_with_its_process() -> None:
    began = time.monotonic()
    told = json.loads(subprocess.run([sys.executable, "-c", RANK], capture_output=True, text=True, check=True).stdout)
    tick = 0.01  # of the kernel's clock of starts
    assert list(told) == ["a rank"] and 0 < told["a rank"] <= time.monotonic() - began + 2 * tick


def test_a_phase_met_twice_is_one_and_what_comes_after_the_end_is_none() -> None:
    startup.passed("too early")
    assert startup.done() == {}
    startup.begin()
    for phase in ("first batch", "first step", "first batch"):
        startup.passed(phase)
    assert list(startup.done()) == ["first batch", "first step"]
    startup.passed("too late")
    assert startup.done() == {}
