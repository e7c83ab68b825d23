"""What Slurm says of jobs: by squeue while they are there, by scontrol for a while after, by sacct where it is kept."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
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
    """The state of each job, of an array that of all its tasks together; UNKNOWN for one that Slurm has forgotten, or
    where there is no Slurm."""
    found = _from_squeue(jobs) if jobs else {}
    for number in jobs:
        if number not in found:
            found[number] = _from_scontrol(number) or _from_sacct(number) or State("UNKNOWN", "Slurm has forgotten it")
    return {number: found[number] for number in jobs}


def _from_squeue(jobs: Sequence[int]) -> dict[int, State]:
    # One job that is gone would make squeue refuse the whole list, so everything of the user's is asked for.
    lines = said("squeue", "--me", "--noheader", "--array", "--states=all", "--format=%F|%T|%N|%r").splitlines()
    found: dict[int, list[State]] = {}
    for line in lines:
        number, name, nodes, reason = (line.split("|") + [""] * 4)[:4]
        if number.isdigit() and int(number) in jobs:
            state = State(name, nodes or ("" if reason == "None" else reason))
            found.setdefault(int(number), []).append(state)
    return {number: _together(tasks) for number, tasks in found.items()}


def _together(tasks: Sequence[State]) -> State:
    """The state of an array: running, waiting, failed, or well ended; and how many of its tasks are in which."""
    if len(tasks) == 1:
        return tasks[0]
    counts = Counter(task.name for task in tasks)
    name = min(counts, key=lambda name: (name != "RUNNING", name in ENDED, name == "COMPLETED"))
    return State(name, ", ".join(f"{count} {name.lower()}" for name, count in counts.most_common()))


def _from_scontrol(job: int) -> State | None:
    tasks = [fields(line) for line in said("scontrol", "--oneliner", "show", "job", str(job)).splitlines()]
    found = [State(words["JobState"], words.get("Reason", "")) for words in tasks if "JobState" in words]
    return _together(found) if found else None


def _from_sacct(job: int) -> State | None:
    lines = said("sacct", "-j", str(job), "-X", "-n", "-P", "-o", "State,NodeList").splitlines()
    found = [State(line.split("|")[0].split()[0], line.partition("|")[2]) for line in lines if line.strip(" |")]
    return _together(found) if found else None


def waiting() -> dict[int, list[str]]:
    """The user's jobs that are in the queue, and what each waits for, such as afterok:7."""
    lines = said("squeue", "--me", "--noheader", "--states=PENDING", "--format=%F|%E").splitlines()
    jobs = dict(line.split("|")[:2] for line in lines if "|" in line)
    return {int(number): re.findall(r"after\w+:\d+", conditions) for number, conditions in jobs.items()}


def nodes_asked_for(job: int) -> int | None:
    """How many nodes a job in the queue is to have."""
    count = fields(said("scontrol", "--oneliner", "show", "job", str(job))).get("NumNodes", "").partition("-")[0]
    return int(count) if count.isdigit() else None


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
