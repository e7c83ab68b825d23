"""Where ranks report: a key-value store at the rendezvous, which answers whoever else hangs.

Collectives end or hang as one, and do not say who is missing. Here each rank leaves word under its own number, and
rank 0 waits for all until a deadline and knows who is late.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

NODES = "MEGAPHONE_NODES"
"""Variable with the job's nodes, a blank between, in the order of their ranks: so that one is named that never came."""
_PAUSE, _LONGEST_PAUSE = 0.02, 0.5  # seconds between looks


@dataclass(frozen=True)
class Place:
    """A rank's place in the job. node: its node as the scheduler calls it."""

    rank: int
    world: int
    local_rank: int
    node: str

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Place:
        """As torchrun, srun or the local launcher made the environment."""
        rank, world = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        node = environment.get("SLURMD_NODENAME") or socket.gethostname()
        return cls(rank, world, int(environment.get("LOCAL_RANK", "0")), node)


class Unreachable(Exception):
    """The rendezvous takes no connection. The message names its host."""


class Gone(Exception):
    """The process that ranks meet at has ended."""


class Meeting:
    """This rank's end of the store. Words are JSON."""

    def __init__(self, place: Place, environment: Mapping[str, str], patience: float) -> None:
        """Reach the store, or be it; `patience`: seconds. Raises Unreachable."""
        import torch.distributed as dist

        self.place = place
        host, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
        agents = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # then torchrun's agent is the store
        try:
            self._base = dist.TCPStore(
                host,
                port,
                is_master=place.rank == 0 and not agents,
                timeout=timedelta(seconds=patience),
                wait_for_workers=False,
                multi_tenant=True,
            )
        except (RuntimeError, OSError) as error:
            raise Unreachable(host) from error
        self._words = dist.PrefixStore("preflight", self._base)
        self.store = dist.PrefixStore("collectives", self._base)  # for a process group

    def say(self, what: str, word: Any) -> None:
        """Leave a word of this rank for the others."""
        with _there():
            self._words.set(f"{what}/{self.place.rank}", json.dumps(word))

    def heard(self, what: str, rank: int) -> Any:
        """The word of a rank; None where it has left none."""
        key = f"{what}/{rank}"
        with _there():
            return json.loads(self._words.get(key)) if self._words.check([key]) else None

    def wait(self, what: str, ranks: Iterable[int], deadline: float) -> dict[int, Any]:
        """The words of those of `ranks` that leave one until `deadline` (time.monotonic); back as soon as all have."""
        asked, pause = list(ranks), _PAUSE
        while time.monotonic() < deadline and not self._have([f"{what}/{rank}" for rank in asked]):
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        words = {rank: self.heard(what, rank) for rank in asked}
        return {rank: word for rank, word in words.items() if word is not None}

    def _have(self, keys: list[str]) -> bool:
        with _there():
            return bool(self._words.check(keys))


@contextmanager
def _there() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what torch's errors of connections are
        raise Gone from error


@dataclass(frozen=True)
class Called:
    """Who a rank said it is when it came."""

    node: str
    local_rank: int

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def names_of_late(late: Iterable[int], called: Mapping[int, Called], world: int, nodes: list[str]) -> dict[str, list]:
    """Late ranks by node: as they said when they came, else as ranks are laid over `nodes` (NODES), node by node; under
    no name where neither tells."""
    found: dict[str, list[int]] = {}
    for rank in late:
        if rank in called:
            name = called[rank].node
        else:
            name = nodes[rank * len(nodes) // world] if nodes and world % len(nodes) == 0 else ""
        found.setdefault(name, []).append(rank)
    return found


def watch(seconds: float, alarm: Callable[[], None]) -> threading.Event:
    """Call `alarm` after so many seconds unless the event is set by then: for a rank that waits in compiled code for a
    store that has stopped."""
    done = threading.Event()

    def sit() -> None:
        if not done.wait(seconds):
            alarm()

    threading.Thread(target=sit, daemon=True, name="preflight-alarm").start()
    return done


def job_of(environment: Mapping[str, str]) -> dict[str, str | None]:
    """Which start of which Slurm job this is, for whoever reads the record of it."""
    return {"job": environment.get("SLURM_JOB_ID"), "restart": environment.get("SLURM_RESTART_COUNT", "0")}


def nodes_of(environment: Mapping[str, str] = os.environ) -> list[str]:
    return environment.get(NODES, "").split()
