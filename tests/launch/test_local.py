"""The local launcher with real processes: what they see, how they end, and that none is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from launch.local import describe_end, last_lines, run_ranks
from runtime.exits import BAD_INPUT, DONE, FAILED, HALTED, HUNG, STOPPED_EARLY
from runtime.log_lines import parse

REPOSITORY = Path(__file__).resolve().parents[2]


def program(body: str) -> list[str]:
    """A command that runs `body` as a rank; RANK is at hand as `rank`."""
    head = "import os, signal, socket, subprocess, sys, time\nrank = int(os.environ['RANK'])\n"
    return [sys.executable, "-c", head + textwrap.dedent(body)]


def wait_for(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def pids(folder: Path, count: int) -> list[int]:
    """Process ids that programs wrote to `folder`, once all `count` are there."""
    wait_for(lambda: len([file for file in folder.glob("pid-*") if file.read_text()]) == count)
    return [int(file.read_text()) for file in sorted(folder.glob("pid-*"))]


def in_launcher(tmp_path: Path, body: str, ranks: int = 2, grace: float = 15.0) -> subprocess.Popen:
    """A launcher of its own, to be signalled or killed; its exit code is run_ranks' result."""
    script = f"""
        import sys
        from pathlib import Path
        from launch.local import run_ranks
        sys.exit(run_ranks({program(body)!r}, ranks={ranks}, logs=Path({str(tmp_path / "logs")!r}), grace={grace}))
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=REPOSITORY,
        env={**os.environ, "FOLDER": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


WRITE_PID = """
def write_pid(name, pid):
    new, path = (os.path.join(os.environ['FOLDER'], kind + name) for kind in ('new-', 'pid-'))
    with open(new, 'w') as file: file.write(str(pid))
    os.rename(new, path)
"""
# A rank with a helper process in its own group that ignores polite signals, both alive for a minute.
WITH_CHILD = (
    WRITE_PID
    + """
deaf = 'import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)'
child = subprocess.Popen([sys.executable, '-c', deaf])
write_pid(f'child-{rank}', child.pid)
write_pid(f'rank-{rank}', os.getpid())
time.sleep(60)
"""
)


def test_ranks_see_their_place_and_rank_0_is_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR CUDA_DEVICE_MAX_CONNECTIONS"
    body = f"print(*(os.environ[name] for name in {names.split()!r})); print('to stderr', file=sys.stderr)"
    assert run_ranks(program(body), ranks=3, logs=tmp_path / "logs") == DONE
    for rank in range(3):
        assert f"{rank} {rank} 3 3 127.0.0.1 1" in (tmp_path / "logs" / f"rank-{rank}.log").read_text()
    shown = capfd.readouterr().out
    assert "0 0 3 3 127.0.0.1 1" in shown and "to stderr" in shown
    assert "1 1 3 3" not in shown


def test_threads_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    body = "sys.exit(int(os.environ['OMP_NUM_THREADS']) != max(1, len(os.sched_getaffinity(0)) // 2))"
    assert run_ranks(program(body), ranks=2, logs=tmp_path) == DONE


def test_rank_0_can_listen_on_the_port_and_others_reach_it(tmp_path: Path) -> None:
    body = """
        address = (os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT']))
        if rank == 0:
            server = socket.socket()
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(address)
            server.listen()
            server.settimeout(20)
            server.accept()[0].sendall(b'hello')
        else:
            for attempt in range(200):
                try:
                    client = socket.create_connection(address, timeout=20)
                    break
                except ConnectionRefusedError:
                    time.sleep(0.05)
            sys.exit(client.recv(5) != b'hello')
    """
    assert run_ranks(program(body), ranks=2, logs=tmp_path) == DONE


def test_a_wish_for_a_profile_reaches_every_rank_and_ends_nothing(tmp_path: Path) -> None:
    """Rank 1 is not ready for it yet, as a rank that still imports is not."""
    body = f"""
        {textwrap.indent(WRITE_PID, " " * 8).strip()}
        got = []
        if rank == 0:
            signal.signal(signal.SIGUSR2, lambda number, frame: got.append(number))
        write_pid(f'rank-{{rank}}', os.getpid())
        deadline = time.monotonic() + 20
        while not os.path.exists(os.path.join(os.environ['FOLDER'], 'sent')) or (rank == 0 and not got):
            if time.monotonic() > deadline: sys.exit(1)
            time.sleep(0.02)
    """
    launcher = in_launcher(tmp_path, body)
    pids(tmp_path, 2)
    launcher.send_signal(signal.SIGUSR2)
    time.sleep(0.2)
    (tmp_path / "sent").touch()
    assert launcher.wait(30) == DONE


def test_logs_are_appended_to(tmp_path: Path) -> None:
    for word in ("first", "second"):
        assert run_ranks(program(f"print('{word}')"), ranks=1, logs=tmp_path) == DONE
    logged = [parse(line) for line in (tmp_path / "rank-0.log").read_text().splitlines()]
    assert [(one[0].rank, one[1]) for one in logged if one] == [(0, "first"), (0, "second")]


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ((0, 0), DONE),
        ((75, 75), STOPPED_EARLY),
        ((0, 75), STOPPED_EARLY),
        ((2, 2), BAD_INPUT),
        ((0, 2), BAD_INPUT),
        ((0, 1), FAILED),
        ((75, 1), FAILED),
        ((4, 0), FAILED),
        ((3, 3), HALTED),
        ((76, 1), HUNG),
    ],
)
def test_exit_codes_become_one(tmp_path: Path, codes: tuple[int, ...], expected: int) -> None:
    assert run_ranks(program(f"sys.exit({codes!r}[rank])"), ranks=2, logs=tmp_path, grace=5) == expected


def test_a_dead_rank_is_named_and_the_others_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    body = """
        if rank == 1:
            print('about to fall', flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    """
    started = time.monotonic()
    assert run_ranks(program(body), ranks=2, logs=tmp_path, grace=0.5) == FAILED
    assert time.monotonic() - started < 20
    said = capfd.readouterr().err
    assert "rank 1 was killed by SIGKILL" in said and "about to fall" in said and str(tmp_path / "rank-1.log") in said


def test_a_rank_that_fails_because_another_was_killed_is_not_blamed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    body = "os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else sys.exit(1)"
    assert run_ranks(program(body), ranks=2, logs=tmp_path) == FAILED
    assert "rank 1 was killed by SIGKILL" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_stop_signals_reach_every_rank(tmp_path: Path, number: signal.Signals) -> None:
    body = (
        WRITE_PID
        + f"""
def stop(number, frame):
    print('got', signal.Signals(number).name, flush=True)
    sys.exit(75)
signal.signal({int(number)}, stop)
write_pid(f'rank-{{rank}}', os.getpid())
time.sleep(60)
"""
    )
    launcher = in_launcher(tmp_path, body)
    pids(tmp_path, 2)
    launcher.send_signal(number)
    out, _ = launcher.communicate(timeout=30)
    assert launcher.returncode == STOPPED_EARLY
    assert f"got {number.name}" in out
    assert f"got {number.name}" in (tmp_path / "logs" / "rank-1.log").read_text()


def test_a_stop_before_ranks_can_listen_is_worth_starting_again(tmp_path: Path) -> None:
    launcher = in_launcher(tmp_path, WRITE_PID + "write_pid(f'rank-{rank}', os.getpid()); time.sleep(60)")
    pids(tmp_path, 2)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(timeout=30) == STOPPED_EARLY


def test_what_a_rank_started_ends_with_it(tmp_path: Path) -> None:
    launcher = in_launcher(tmp_path, WITH_CHILD, grace=0.5)
    everyone = pids(tmp_path, 4)
    os.kill(everyone[-1], signal.SIGKILL)
    launcher.communicate(timeout=30)
    assert launcher.returncode == FAILED
    wait_for(lambda: not any(alive(pid) for pid in everyone))


def test_nobody_outlives_a_killed_launcher(tmp_path: Path) -> None:
    launcher = in_launcher(tmp_path, WITH_CHILD)
    everyone = pids(tmp_path, 4)
    launcher.kill()
    launcher.communicate(timeout=30)
    wait_for(lambda: not any(alive(pid) for pid in everyone))


def test_a_reader_that_goes_away_does_not_stop_the_run(tmp_path: Path) -> None:
    body = "for turn in range(20): print('line', turn, flush=True); time.sleep(0.02)"
    launcher = in_launcher(tmp_path, body, ranks=1)
    assert launcher.stdout is not None
    launcher.stdout.close()
    assert launcher.wait(timeout=30) == DONE
    assert (tmp_path / "logs" / "rank-0.log").read_text().count("line") == 20


def test_last_lines_come_from_the_end(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_text("".join(f"line {number}\n" for number in range(20_000)))
    assert last_lines(file, 2) == ["line 19998", "line 19999"]


def test_ends_are_described() -> None:
    assert describe_end(1) == "exited with 1"
    assert describe_end(-9) == "was killed by SIGKILL"
