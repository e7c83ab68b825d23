"""What Slurm says of jobs: by squeue while they are there, by scontrol for a while after, by sacct where it is kept."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ENDED = frozenset(
    {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "DEADLINE", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "UNKNOWN"}
)


@dataclass(frozen=True)
class State:
    """A job's state, such as RUNNING, and where it runs or what it waits for."""

    name: str
    where: str


def states(jobs: Sequence[int]) -> dict[int, State]:
    """The state of each job; UNKNOWN for one that Slurm has forgotten, or where there is no Slurm."""
    found = _from_squeue(jobs) if jobs else {}
    for number in jobs:
        if number not in found:
            found[number] = _from_scontrol(number) or _from_sacct(number) or State("UNKNOWN", "Slurm has forgotten it")
    return {number: found[number] for number in jobs}


def _from_squeue(jobs: Sequence[int]) -> dict[int, State]:
    # One job that is gone would make squeue refuse the whole list, so everything of the user's is asked for.
    lines = said("squeue", "--me", "--noheader", "--states=all", "--format=%A|%T|%N|%r").splitlines()
    found = {}
    for line in lines:
        number, name, nodes, reason = (line.split("|") + [""] * 4)[:4]
        if number.isdigit() and int(number) in jobs:
            found[int(number)] = State(name, nodes or ("" if reason == "None" else reason))
    return found


def _from_scontrol(job: int) -> State | None:
    words = fields(said("scontrol", "--oneliner", "show", "job", str(job)))
    name = words.get("JobState")
    return None if name is None else State(name, words.get("Reason", ""))


def _from_sacct(job: int) -> State | None:
    lines = said("sacct", "-j", str(job), "-X", "-n", "-P", "-o", "State,NodeList").splitlines()
    if not lines:
        return None
    name, _, nodes = lines[-1].partition("|")
    return State(name.split()[0], nodes) if name else None


def fields(line: str) -> dict[str, str]:
    """What scontrol tells in one line, by key; of a value with spaces its first word."""
    return dict(word.partition("=")[::2] for word in line.split())


def said(*command: str) -> str:
    """What a command prints; nothing where it fails or is not there."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def own_environment(around: Mapping[str, str]) -> dict[str, str]:
    """The environment without the options that a user or an outer job gave to sbatch by variables: the script alone
    says what it wants."""
    kept = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_CLUSTER_NAME")
    return {
        name: value
        for name, value in around.items()
        if name in kept or not name.startswith(("SLURM_", "SBATCH_", "SRUN_", "MEGAPHONE_EXIT"))
    }
