"""The watchdog on real ranks that hang or are stopped: who is named, what is written, how processes end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from runtime.exits import HUNG
from train.resilience import heartbeats

REPOSITORY = Path(__file__).resolve().parents[3]

# A rank that makes progress, until rank 1 hangs in `stuck_here` and rank 0 waits for it.
RANK = """
    import sys, time
    from pathlib import Path
    from train.resilience.watchdog import Watchdog

    def stuck_here():
        while True:
            time.sleep(0.05)

    folder, rank, how = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    watchdog = Watchdog(folder, rank, 2, "start", limit=1.0)
    watchdog.start()
    for step in range(1, 4):
        watchdog.pulse.move("training", step)
    print("up", flush=True)
    if rank == 1 and how == "hang":
        stuck_here()
    while how == "stop" and rank == 0 and not (folder / "stopped").exists():
        watchdog.pulse.move("working", 3)
        time.sleep(0.05)
    watchdog.pulse.move("waiting", 3)
    while True:
        if how == "stop" and rank == 1:
            watchdog.pulse.move("working", 3)
        time.sleep(0.05)
"""


@pytest.mark.parametrize("how", ["hang", "stop"])
def test_the_rank_behind_is_named_by_all_and_every_rank_that_can_dumps_its_stacks(how: str, tmp_path: Path) -> None:
    heartbeats.clear(tmp_path)
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(RANK), str(tmp_path), str(rank), how],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in ranks:
            assert process.stdout is not None and process.stdout.readline() == "up\n"
        deadline = time.monotonic() + 20
        while any(beat.step < 3 for beat in heartbeats.read(tmp_path).values()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        if how == "stop":
            os.kill(ranks[1].pid, signal.SIGSTOP)
            (tmp_path / "stopped").touch()
        said = ranks[0].communicate(timeout=30)[1]
        assert ranks[0].returncode == HUNG
        stacks = [tmp_path / "logs" / f"stacks-rank-{rank}.txt" for rank in range(2)]
        assert "without progress after step 3, waiting" in stacks[0].read_text()
        if how == "stop":
            assert "rank 1 does not answer (after step 3, working; pid " in said
            return
        assert "rank 1 is behind (after step 3, training" in said
        assert ranks[1].communicate(timeout=30)[1].count("rank 1 is behind") == 1
        assert ranks[1].returncode == HUNG
        assert "in stuck_here" in stacks[1].read_text()
    finally:
        for process in ranks:
            process.kill()


def test_heartbeats_tell_where_a_rank_is_and_an_unreadable_one_is_left_out(tmp_path: Path) -> None:
    heartbeats.clear(tmp_path)
    pulse = heartbeats.Pulse()
    pulse.move("training", 7)
    heartbeats.write(heartbeats.folder_of(tmp_path), heartbeats.beat_of(pulse, 3, "start", 1))
    (heartbeats.folder_of(tmp_path) / "rank-00004.json").write_text('{"rank": 4')
    beats = heartbeats.read(tmp_path)
    assert list(beats) == [3]
    assert (beats[3].step, beats[3].phase, beats[3].pid) == (7, "training", os.getpid())
    assert abs(beats[3].time - time.time()) < 60
    heartbeats.clear(tmp_path)
    assert heartbeats.read(tmp_path) == {}
