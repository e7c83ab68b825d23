"""Stop signals where no loop looks for them: start-up, the rendezvous, work in one piece. Really sent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs.schema import StageKind
from launch import commands, training
from launch.local import run_ranks
from runtime.exits import DONE, STOPPED_EARLY, StoppedEarly
from runtime.signals import stoppable
from tests.data_pipeline.synthetic import make_corpus
from tests.ranks import free_port
from tests.train.runs import tiny_config


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # the handler runs between two bytecodes


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_work_in_one_piece_is_left_at_once(number: int) -> None:
    with stoppable() as stop:
        with (
            pytest.raises(StoppedEarly, match=f"stopped by {signal.Signals(number).name}; again"),
            stop.at_once("again"),
        ):
            send(number)
            pytest.fail("the signal was not heeded")
        with pytest.raises(StoppedEarly), stop.at_once("again"):
            pytest.fail("a signal that came before was forgotten")


def test_a_loop_inside_keeps_its_own_way_to_stop() -> None:
    with stoppable() as outer, outer.at_once("again"), stoppable() as inner:
        send(signal.SIGTERM)
        assert inner and not outer


def test_a_rank_that_waits_for_the_first_one_can_be_stopped(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(
        "import sys\n"
        "from runtime.exits import StoppedEarly\n"
        "from runtime.signals import StopFlag\n"
        "from train.stage import _wait_for_first_rank\n"
        "stop = StopFlag().install()\n"
        "print('waiting', flush=True)\n"
        "try:\n"
        "    _wait_for_first_rank(stop)\n"
        "except StoppedEarly as stopped:\n"
        "    sys.exit(stopped.exit_code)\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    process = subprocess.Popen([sys.executable, str(script)], env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"waiting\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == STOPPED_EARLY


def test_a_rank_that_stops_alone_takes_the_others_with_it(tmp_path: Path) -> None:
    """As rank 0 does, where it is asked to stop while it converts weights and the others wait for it."""
    program = (
        "import os, signal, sys, time\n"
        "if os.environ['RANK'] == '0': sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "time.sleep(60)\n"
    )
    started = time.monotonic()
    assert run_ranks([sys.executable, "-c", program], ranks=2, logs=tmp_path) == STOPPED_EARLY
    assert time.monotonic() - started < 30


def test_a_command_without_a_loop_ends_with_the_code_of_a_stop(tmp_path: Path) -> None:
    """A stand-in for `report`, which is over too soon to be hit: it sleeps."""
    program = (
        "import sys, time, types\n"
        "module = types.ModuleType('launch.commands')\n"
        "def report(options):\n"
        "    print('busy', flush=True)\n"
        "    time.sleep(60)\n"
        "module.report = report\n"
        "sys.modules['launch.commands'] = module\n"
        "from launch.cli import main\n"
        "sys.exit(main(['report', 'nowhere']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "busy\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == STOPPED_EARLY
    assert process.stderr is not None and "stopped by SIGTERM" in process.stderr.read()


def test_a_stop_when_the_last_step_is_done_keeps_what_would_come_next_from_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ranks end well all the same; export and report are for the next time."""
    monkeypatch.setitem(training.MODULES, StageKind.train, "tests.launch.finishes")
    config = tiny_config(tmp_path / "run", make_corpus(tmp_path / "corpus"))
    with pytest.raises(StoppedEarly, match="stopped by SIGTERM"):
        commands._run_stage(config)
    assert (tmp_path / "run/results.json").exists() and not (tmp_path / "run/export").exists()
    assert training.train_locally(config) == DONE
