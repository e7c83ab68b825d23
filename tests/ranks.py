"""Real processes for tests of distributed behaviour, started cheaply.

Ranks are forked from a server that has imported torch and Megatron-Core once; each joins a gloo group of its own.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from typing import Any

from launch.local import reserved_port

_context = multiprocessing.get_context("forkserver")
_PRELOADED = "tests.preload"
_context.set_forkserver_preload([_PRELOADED])


def start_server() -> None:
    """Start the process that ranks are forked from. A process has one such server, and it imports what the first to
    start it asked for: started here, it also serves the workers of commands that tests run in their own process."""
    forkserver.ensure_running()


class RankFailed(AssertionError):
    """A rank raised or died."""


class OutOfTime(AssertionError):
    """No rank answered for too long; no RankFailed, since who waits for a rank to die must not take this for it."""


def free_port() -> int:
    with reserved_port() as port:
        return port


def run_ranks(function: Callable[..., Any], world: int, *arguments: Any, timeout: float = 120) -> list[Any]:
    """Call `function(*arguments)` on `world` ranks with their environment set; returns what each rank returned.

    `function` is importable by name. Raises RankFailed with the first rank's traceback, OutOfTime where none answers
    within `timeout` seconds; no process outlives the call.
    """
    processes, pipes = [], []
    with reserved_port() as port:
        for rank in range(world):
            here, there = _context.Pipe(duplex=False)
            process = _context.Process(target=_rank, args=(there, function, arguments, rank, world, port), daemon=True)
            process.start()
            there.close()
            processes.append(process)
            pipes.append(here)
        try:
            return _collect(pipes, timeout)
        finally:
            for process in processes:
                process.kill()
                process.join()


def _collect(pipes: list[Connection], timeout: float) -> list[Any]:
    answers: dict[int, Any] = {}
    while len(answers) < len(pipes):
        waiting = [pipe for index, pipe in enumerate(pipes) if index not in answers]
        ready = wait(waiting, timeout)
        if not ready:
            raise OutOfTime(f"no answer within {timeout} s from ranks {[pipes.index(p) for p in waiting]}")  # type: ignore[arg-type]
        for pipe in ready:
            rank = pipes.index(pipe)  # type: ignore[arg-type]
            try:
                failed, answer = pipe.recv()  # type: ignore[union-attr]
            except EOFError:
                raise RankFailed(f"rank {rank} died without an answer") from None
            if failed:
                raise RankFailed(f"rank {rank} of {len(pipes)}:\n{answer}")
            answers[rank] = answer
    return [answers[rank] for rank in range(len(pipes))]


def _rank(
    pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...], rank: int, world: int, port: int
) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    try:
        importlib.import_module(_PRELOADED)  # at hand, unless the server was started by a command
        answer = (False, function(*arguments))
    except BaseException:
        answer = (True, traceback.format_exc())
    pipe.send(answer)
    pipe.close()
    os._exit(0)
