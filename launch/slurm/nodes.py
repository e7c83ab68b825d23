"""Which nodes of a job do not answer any more: asked at its end, when Slurm itself may not have noticed yet. And how a
job in the queue is kept from nodes that answer and are sick."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from launch.slurm.queue import fields, said

PATIENCE = 10.0  # seconds in which a node's slurmd has to take a connection


def lost(job: int, names: Sequence[str]) -> list[str]:
    """Those of a running job's nodes that Slurm has taken out of it, or whose slurmd takes no connection."""
    has = fields(said("scontrol", "--oneliner", "show", "job", str(job)))
    left = names_of(has.get("NodeList", "")) if has.get("JobState") == "RUNNING" else names
    port = said("scontrol", "show", "config").partition("SlurmdPort")[2].split()[1:2]
    if not port or not port[0].isdigit():
        return [name for name in names if name not in left]
    with ThreadPoolExecutor(max_workers=64) as threads:
        answers = list(threads.map(lambda name: _answers(name, int(port[0])), names))
    return [name for name, answered in zip(names, answers, strict=True) if not answered or name not in left]


def names_of(nodes: str) -> list[str]:
    """The names that a list such as node[1-4] stands for."""
    return said("scontrol", "show", "hostnames", nodes).split() if nodes else []


def exclude(job: int, nodes: Sequence[str], patience: float = 0.0) -> None:
    """Keep a job that is in the queue from these nodes too. Raises RuntimeError where Slurm does not take it within
    `patience` seconds.

    A job just queued again may not be pending for Slurm yet, but does not start before its script has ended.
    """
    before = fields(said("scontrol", "--oneliner", "show", "job", str(job))).get("ExcNodeList", "(null)")
    names = dict.fromkeys([*([] if before == "(null)" else [before]), *nodes])  # a list such as node[1-4] is a word
    command = ["scontrol", "update", f"JobId={job}", f"ExcNodeList={','.join(names)}"]
    deadline = time.monotonic() + patience
    while True:
        told = subprocess.run(command, capture_output=True, text=True)
        if not told.returncode:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"{' '.join(command)}: {' '.join(told.stderr.split())}")
        time.sleep(0.2)


def _answers(node: str, port: int) -> bool:
    address = fields(said("scontrol", "--oneliner", "show", "node", node)).get("NodeAddr", node)
    try:
        socket.create_connection((address, port), timeout=PATIENCE).close()
    except OSError:
        return False
    return True
