"""Who failed first, and why: from the logs of all ranks, how they ended, and their heartbeats.

A failing rank takes all others with it, and most of them say more about it than the first did. So what counts, in this
order, is: a node that is gone; broken hardware; a rank killed by a signal that nobody of ours sent; whom the watchdogs
name; the earliest of the errors that ranks ended with, those left out that only tell of another rank; a heartbeat that
stopped; and then the earliest sign that another one is gone.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from launch.logs.reading import Line
from launch.recovery.causes import EXCEPTION, HOST_MEMORY, KILLED, NODE_LOST, SILENT, WATCHDOG, Cause, cause_of
from runtime.exits import FAILED
from runtime.log_lines import Level

# Signals that come from outside of a program, or from a fault of its own; SIGABRT is how libraries give up on others.
_DECISIVE = {signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP}
_NAMED = re.compile(r"no progress for .*?rank (\d+) (?:does not answer|is behind)")
_PID_ON = re.compile(r"pid \d+ on ([^\s);]+)")
_SRUN = re.compile(r"srun: error: (\S+): tasks? (\d+)[\d,-]*: (.+)")
_NODE_FAILED = re.compile(r"Node failure on (\S+)|STEP .* ON (\S+) CANCELLED AT .* DUE TO NODE FAILURE")
_SRUN_SIGNALS = ("Killed", "Segmentation fault", "Bus error", "Illegal instruction", "Floating point exception")
_LONGEST = 200  # characters of a line that is quoted


@dataclass(frozen=True)
class Blame:
    """The rank and node that failed first, None where that is not known or none is to blame more than others.

    kind: as in `causes`; broken: starting again on that node is of no use; why: the line that tells it; time: of that
    line, seconds since 1970, 0 where it has none.
    """

    rank: int | None
    node: str | None
    kind: str
    broken: bool
    why: str
    time: float = 0.0

    def __str__(self) -> str:
        who = "all ranks" if self.rank is None and self.node is None else ""
        who += "" if self.rank is None else f"rank {self.rank}"
        if self.node is not None:
            who += f" on {self.node}" if who else self.node
        return f"{who}: {self.kind}" + (f" ({self.why})" if self.why else "")


@dataclass(frozen=True)
class Evidence:
    """What is left of a failed start.

    lines: of all logs since it began, by time. ends: how ranks ended by themselves, exit code or minus a signal's
    number; a rank is missing where that is not known, or was ended by its launcher. nodes: of ranks, as far as known.
    lost: nodes that no longer answer. silent: ranks whose heartbeat stopped before the others'.
    """

    lines: Iterable[Line]
    ends: Mapping[int, int] = field(default_factory=dict)
    nodes: Mapping[int, str] = field(default_factory=dict)
    lost: Sequence[str] = ()
    silent: Sequence[int] = ()
    ranks: int = 0


@dataclass
class _Found:
    """What the logs tell. `errors` and `symptoms`: the last of every rank; `killed`: by Slurm's word, in its order."""

    broken: tuple[Line, Cause] | None = None
    named: tuple[Line, int] | None = None
    failed_nodes: list[Line] = field(default_factory=list)
    killed: list[tuple[Line, re.Match[str]]] = field(default_factory=list)
    errors: dict[int | None, tuple[Line, Cause]] = field(default_factory=dict)
    symptoms: dict[int | None, tuple[Line, Cause]] = field(default_factory=dict)
    nodes: dict[int, str] = field(default_factory=dict)


def blame(evidence: Evidence) -> Blame | None:
    """Who is to blame for a failed start; None where nothing tells."""
    found = _read(evidence.lines)
    nodes = {**found.nodes, **evidence.nodes}
    return (
        _lost(evidence, found, nodes)
        or (found.broken and _of_line(*found.broken, nodes))
        or _killed(evidence, found, nodes)
        or _named(found, nodes)
        or _error(evidence, found, nodes)
        or _silent(evidence, nodes)
        or _earliest(found.symptoms, nodes)
        or _ended(evidence, nodes)
    )


def _read(lines: Iterable[Line]) -> _Found:
    found = _Found()
    for line in lines:
        if line.rank is not None and line.rank >= 0 and line.node != "-":
            found.nodes.setdefault(line.rank, line.node)
        if line.level < Level.warning or line.rank == -1:
            continue
        if said := _NAMED.search(line.text):
            found.named = found.named or (line, int(said[1]))
        elif said := _SRUN.search(line.text):
            found.killed.append((line, said))
        elif _NODE_FAILED.search(line.text):
            found.failed_nodes.append(line)
        elif cause := cause_of(re.sub(r"^\[rank\d+\]: ?", "", line.text)):
            if cause.broken:
                found.broken = found.broken or (line, cause)
            (found.symptoms if cause.symptom else found.errors)[line.rank] = (line, cause)
    return found


def _lost(evidence: Evidence, found: _Found, nodes: Mapping[int, str]) -> Blame | None:
    if evidence.lost:
        node = evidence.lost[0]
        why = f"{', '.join(evidence.lost)} no longer answers"
        return Blame(_first_on(node, nodes), node, NODE_LOST, False, why)
    for line in found.failed_nodes:
        said = _NODE_FAILED.search(line.text)
        if said is not None and said[1]:
            return Blame(_first_on(said[1], nodes), said[1], NODE_LOST, False, line.text[:_LONGEST], line.time)
    return None


def _killed(evidence: Evidence, found: _Found, nodes: Mapping[int, str]) -> Blame | None:
    memory = next((line for line, cause in found.errors.values() if cause.kind == HOST_MEMORY), None)
    rank = next((rank for rank, code in sorted(evidence.ends.items()) if -code in _DECISIVE), None)
    if rank is not None:
        number = -evidence.ends[rank]
        why = f"killed by {signal.Signals(number).name}"
    elif found.killed and found.killed[0][1][3].startswith(_SRUN_SIGNALS):
        said = found.killed[0][1]  # those that srun kills itself come after the first
        rank, why = int(said[2]), said[0]
        nodes = {**nodes, rank: said[1]}
    else:
        return None
    if memory is not None and memory.rank in (None, rank):
        return Blame(rank, nodes.get(rank), HOST_MEMORY, False, memory.text[:_LONGEST], memory.time)
    return Blame(rank, nodes.get(rank), KILLED, False, why)


def _named(found: _Found, nodes: Mapping[int, str]) -> Blame | None:
    if found.named is None:
        return None
    line, rank = found.named
    host = _PID_ON.search(line.text)
    node = nodes.get(rank) or (host[1].partition(".")[0] if host else None)
    return Blame(rank, node, WATCHDOG, False, line.text.removeprefix("megaphone: error: ")[:_LONGEST], line.time)


def _error(evidence: Evidence, found: _Found, nodes: Mapping[int, str]) -> Blame | None:
    """The earliest of the errors that ranks ended with. What most ranks ended with alike is no one node's fault."""
    failed = {rank for rank, code in evidence.ends.items() if code == FAILED}
    errors = {
        rank: error
        for rank, error in found.errors.items()
        if not failed or rank in failed or rank is None or error[1].kind != EXCEPTION
    }
    first = _earliest(errors, nodes)
    alike = sum(cause.kind == first.kind for _, cause in errors.values()) if first else 0
    if first is not None and alike > 1 and 2 * alike >= max(evidence.ranks, 1):
        return Blame(
            None, None, first.kind, False, f"{alike} of them, first rank {first.rank}: {first.why}", first.time
        )
    return first


def _silent(evidence: Evidence, nodes: Mapping[int, str]) -> Blame | None:
    if not evidence.silent:
        return None
    rank = min(evidence.silent)
    return Blame(rank, nodes.get(rank), SILENT, False, "its heartbeat stopped before the others'")


def _ended(evidence: Evidence, nodes: Mapping[int, str]) -> Blame | None:
    ends = {rank: code for rank, code in evidence.ends.items() if code not in (0, 75)}
    if not ends:
        return None
    rank = min(ends, key=lambda rank: (ends[rank] >= 0, rank))
    why = f"exited with {ends[rank]}" if ends[rank] >= 0 else f"killed by signal {-ends[rank]}"
    return Blame(rank, nodes.get(rank), KILLED if ends[rank] < 0 else "exited", False, why)


def _earliest(errors: Mapping[int | None, tuple[Line, Cause]], nodes: Mapping[int, str]) -> Blame | None:
    return _of_line(*min(errors.values(), key=lambda error: error[0].time), nodes) if errors else None


def _of_line(line: Line, cause: Cause, nodes: Mapping[int, str]) -> Blame:
    rank = line.rank if line.rank is not None and line.rank >= 0 else None
    node = line.node if line.node != "-" else None if rank is None else nodes.get(rank)
    text = re.sub(r"^\[rank\d+\]: ?", "", line.text)
    return Blame(rank, node, cause.kind, cause.broken, text[:_LONGEST], line.time)


def _first_on(node: str, nodes: Mapping[int, str]) -> int | None:
    return min((rank for rank, on in nodes.items() if on == node), default=None)
