"""The ranks of one machine: started as subprocesses, watched, and all ended together.

Each rank is its own process group. Rank 0's output is shown as it comes; every rank's output is appended to
`rank-N.log`, its lines stamped (`runtime.log_lines`). Nobody survives: a rank dies with the launcher
(PR_SET_PDEATHSIG), and what a rank may have started dies by `launch.guard`, which outlives the launcher just long
enough to kill it.
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import os
import pty
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

from runtime.exits import BAD_INPUT, DONE, FAILED, HALTED, HUNG, SICK, STOPPED_EARLY
from runtime.log_lines import LINES_STAMPED, Stamper
from runtime.signals import PROFILE_SIGNAL, STOP_SIGNALS

PR_SET_PDEATHSIG = 1
POLL_SECONDS = 0.1
LOG_TAIL_LINES = 20
HUNG_GRACE = 3.0  # seconds
PASS_ON = 2.0  # seconds after one rank has stopped in which the others may end by themselves
STOPPED_GRACE = 300.0  # seconds that a rank may still work after another has ended on a stop signal
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Rank:
    """One running rank, its log, and how it ended (`code`: exit code, or minus a signal's number; None: running)."""

    number: int
    process: subprocess.Popen[bytes]
    log: Path
    code: int | None = None
    killed: bool = False  # by the launcher, because another rank had failed
    told: bool = False  # sent a stop signal, because another rank had stopped

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


@dataclass
class Output:
    """Rank 0's output: read from `source`, stamped into its log, and shown for as long as anybody reads it."""

    source: int
    log: IO[bytes]
    stamper: Stamper = field(default_factory=lambda: Stamper(0))
    decoder: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))
    shown: bool = True
    open: bool = True

    def pump(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for output and pass on what has come."""
        if not self.open:
            time.sleep(timeout)
            return
        with selectors.DefaultSelector() as selector:
            selector.register(self.source, selectors.EVENT_READ)
            if not selector.select(timeout):
                return
        try:
            data = os.read(self.source, 65536)
        except OSError:  # a pseudo-terminal says EIO at its end
            data = b""
        self.open = bool(data)
        self._keep(self.stamper(self.decoder.decode(data)))
        if self.shown:
            try:
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
            except BrokenPipeError:
                self.shown = False

    def drain(self) -> None:
        """Pass on what is there already, without waiting for whoever still holds the other end."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.source, selectors.EVENT_READ)
            while self.open and selector.select(0):
                self.pump(0)
        self._keep(self.stamper.end())

    def _keep(self, lines: str) -> None:
        with contextlib.suppress(OSError):  # a full disk costs the log; the run itself reports it where it saves
            self.log.write(lines.encode())


@dataclass
class Group:
    """All ranks of one launch, and who wants them to stop."""

    ranks: list[Rank] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)  # stop signals received

    def forward(self, number: int, frame: FrameType | None) -> None:
        self.asked.append(number)
        self.pass_on(number, frame)

    def pass_on(self, number: int, frame: FrameType | None) -> None:
        """A signal that asks for nothing to end: whoever is there gets it."""
        for rank in self.ranks:
            if rank.code is None:
                rank.signal(number)

    def add(self, rank: Rank) -> None:
        self.ranks.append(rank)
        for number in self.asked:  # a stop that came while ranks were being started is for all of them
            rank.signal(number)


def run_ranks(
    command: Sequence[str],
    *,
    ranks: int,
    logs: Path,
    grace: float = 15.0,
    asked: list[int] | None = None,
    ends: dict[int, int] | None = None,
) -> int:
    """Run `command` as `ranks` processes of one job; returns the exit code of the whole.

    Each process gets RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT. SIGTERM, SIGUSR1,
    SIGINT and SIGUSR2 are passed on to all of them. When one fails the others have `grace` seconds to end by themselves
    before they are killed. 0: all did; 75: all ended well and some stopped early; 2: one refused its input; 3: the run
    halted; 76: its watchdog ended it; 77: a preflight names nodes; 1: anything else. `asked` takes the stop signals
    that come meanwhile, `ends` how each rank ended by itself: its exit code, or minus a signal's number.
    """
    logs.mkdir(parents=True, exist_ok=True)
    group = Group(asked=[] if asked is None else asked)
    with reserved_port() as port, _guard() as guard, contextlib.ExitStack() as stack:
        before = {number: signal.signal(number, group.forward) for number in STOP_SIGNALS}
        before[PROFILE_SIGNAL] = signal.signal(PROFILE_SIGNAL, group.pass_on)
        stack.callback(lambda: [signal.signal(number, handler) for number, handler in before.items()])
        stack.callback(lambda: _end(group))
        output = None
        for number in range(ranks):
            rank, source = _start(command, number, ranks, port, logs / f"rank-{number}.log", stack)
            group.add(rank)
            print(rank.process.pid, file=guard, flush=True)
            output = output or source
        assert output is not None
        _watch(group, output, grace)
    if ends is not None:
        ends |= {rank.number: rank.code for rank in group.ranks if rank.code is not None and not _ended_by_us(rank)}
    return _verdict(group)


# --- starting -------------------------------------------------------------------------------------------------------


def _start(
    command: Sequence[str], number: int, ranks: int, port: int, log: Path, stack: contextlib.ExitStack
) -> tuple[Rank, Output | None]:
    file = stack.enter_context(log.open("ab", buffering=0))
    source = None
    stdout = file.fileno()
    if number == 0:  # a terminal stays a terminal for rank 0, so that its progress bars are drawn
        reading, stdout = pty.openpty() if sys.stdout.isatty() else os.pipe()
        stack.callback(os.close, reading)
        source = Output(reading, file)
    launcher = os.getpid()
    process = subprocess.Popen(
        command,
        env=rank_environment(number, ranks, port) | ({} if number else {LINES_STAMPED: "1"}),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=lambda: _die_with(launcher),
    )
    if number == 0:
        os.close(stdout)
    return Rank(number, process, log), source


def _die_with(launcher: int) -> None:
    """Between fork and exec: have the kernel kill this process when the launcher ends. A signal that only asks for a
    profile is nothing to die of before there is something to record."""
    signal.signal(PROFILE_SIGNAL, signal.SIG_IGN)
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher:  # it ended before the request was made
        os._exit(FAILED)


def rank_environment(number: int, ranks: int, port: int) -> dict[str, str]:
    """The environment of one rank: this process's own, the process group's names, and its share of the cores."""
    cores = len(os.sched_getaffinity(0))
    return {
        "OMP_NUM_THREADS": str(max(1, cores // ranks)),
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",  # Megatron: kernels start in the order in which they were issued
        "PYTHONUNBUFFERED": "1",
        **os.environ,
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """A free port that stays ours: bound, so nobody else is given it; not listening, so rank 0 can (SO_REUSEADDR)."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@contextlib.contextmanager
def _guard() -> Iterator[IO[str]]:
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(Path(__file__).with_name("guard.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    )
    assert process.stdin is not None
    try:
        yield process.stdin
    finally:
        process.stdin.close()
        process.wait()


# --- watching -------------------------------------------------------------------------------------------------------


def _watch(group: Group, output: Output, grace: float) -> None:
    deadline, patience, pass_on = None, float("inf"), None
    while any(rank.code is None for rank in group.ranks):
        output.pump(POLL_SECONDS)
        for rank in group.ranks:
            if rank.code is None:
                rank.code = rank.process.poll()
        if pass_on is None and any(rank.code == STOPPED_EARLY for rank in group.ranks):
            pass_on = time.monotonic() + PASS_ON  # by then those that stop together with it have ended
        if pass_on is not None and time.monotonic() > pass_on:
            # One that stopped before it could tell the others, at a rendezvous they wait at.
            pass_on, patience = float("inf"), time.monotonic() + STOPPED_GRACE
            for rank in group.ranks:
                if rank.code is None:
                    rank.told = True
                    rank.signal(signal.SIGTERM)
        failed = any(rank.code not in (None, DONE, STOPPED_EARLY) for rank in group.ranks)
        if failed and deadline is None:
            hung = any(rank.code == HUNG for rank in group.ranks)  # who is left then does not end by itself
            deadline = time.monotonic() + (min(grace, HUNG_GRACE) if hung else grace)
        if time.monotonic() > min(patience, float("inf") if deadline is None else deadline):
            for rank in group.ranks:
                if rank.code is None:
                    rank.killed = True
                    rank.kill_group()
            deadline = patience = float("inf")
    output.drain()


def _end(group: Group) -> None:
    """Whatever the ranks or the launcher did, nothing of theirs stays behind."""
    for rank in group.ranks:
        rank.kill_group()
        rank.process.wait()


def _verdict(group: Group) -> int:
    codes = {rank.code for rank in group.ranks}
    if codes <= {DONE, STOPPED_EARLY}:
        return STOPPED_EARLY if STOPPED_EARLY in codes else DONE
    known = next((code for code in (BAD_INPUT, HALTED, SICK) if code in codes), None)  # every rank says the same line
    refused = [rank for rank in group.ranks if rank.code == known]
    failed = [rank for rank in group.ranks if rank.code not in (DONE, STOPPED_EARLY) and not _ended_by_us(rank)]
    if not failed and STOPPED_EARLY in codes:
        return STOPPED_EARLY  # the others hung at a rendezvous that was called off
    culprit = _first_cause(refused or failed)
    if culprit.code is not None and -culprit.code in group.asked:
        return STOPPED_EARLY  # the stop came before that rank could listen: its last checkpoint stands
    if not refused or culprit.number:  # what rank 0 had to say has been shown
        print(f"megaphone: rank {culprit.number} {describe_end(culprit.code)}; see {culprit.log}", file=sys.stderr)
    if culprit.number:
        for line in last_lines(culprit.log, LOG_TAIL_LINES):
            print(f"  {line}", file=sys.stderr)
    return known or (HUNG if HUNG in codes else FAILED)


def _ended_by_us(rank: Rank) -> bool:
    """Killed, or told to stop before it could listen."""
    return rank.killed or (rank.told and rank.code == -signal.SIGTERM)


def _first_cause(culprits: Sequence[Rank]) -> Rank:
    """A rank ended by a signal, or by its watchdog, is what made its neighbours fail, rather than the other way
    round."""
    return min(culprits, key=lambda rank: (rank.code is None or rank.code >= 0, rank.code != HUNG, rank.number))


def describe_end(code: int | None) -> str:
    """`exited with 1`, or `was killed by SIGKILL`."""
    if code is None or code >= 0:
        return f"exited with {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def last_lines(file: Path, count: int) -> list[str]:
    """The last `count` lines of a text file, read from its end."""
    with file.open("rb") as log:
        log.seek(0, os.SEEK_END)
        log.seek(max(0, log.tell() - 64 * 1024))
        return log.read().decode("utf-8", "replace").splitlines()[-count:]
