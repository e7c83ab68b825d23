"""What a run folder knows of its Slurm jobs: `slurm/jobs.json` of what was submitted, `slurm/attempts.jsonl` of starts,
`slurm/left_out.jsonl` of nodes that its jobs are kept from.

Both are written by whoever runs as the user: the submitting command, and the batch script at its end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from runtime import records
from runtime.exits import BadInput

FOLDER = "slurm"
_JOBS, _ATTEMPTS, _LEFT_OUT, _CANCELLED = "jobs.json", "attempts.jsonl", "left_out.jsonl", "cancelled"


@dataclass(frozen=True)
class Submitted:
    """One job of a run folder: what it is for, its Slurm id, and the settings that its end goes by."""

    kind: str  # features, corpus, merge, train or finish
    id: int
    name: str
    ranks: int  # over all nodes that were asked for; 0: no process group
    requeues: int = 0  # as cluster.requeues
    restarts: int = 0  # as resilience.restarts
    nodes: int = 1  # asked for
    later: Sequence[str] = ()  # run folders of the chain's later stages
    before: Sequence[int] = ()  # numbers that the job had before: one of another size is submitted anew

    @property
    def ids(self) -> list[int]:
        return [self.id, *self.before]


@dataclass(frozen=True)
class Attempt:
    """How one start of a job ended. `code` as in runtime.exits; `checkpoint` is the newest one by then."""

    job: int
    restart: int  # times that Slurm had queued it again before
    nodes: str
    code: int
    asked: str  # signal that the job was told to stop by, or nothing
    checkpoint: str | None
    queued_again: bool
    reason: str  # one line
    task: int | None = None  # of an array
    excluded: Sequence[str] = ()  # nodes that a preflight or the logs name, and that the job was queued again without

    @property
    def name(self) -> str:
        """As Slurm's commands take it."""
        return str(self.job) if self.task is None else f"{self.job}_{self.task}"


@dataclass(frozen=True)
class LeftOut:
    """A node that a job is kept from, and why, in one line. by: the job of the chain whose end found that."""

    job: int
    node: str
    why: str
    by: int


def folder_of(run: Path) -> Path:
    return run / FOLDER


def write_jobs(run: Path, jobs: list[Submitted]) -> None:
    """Replace the list of a run folder's jobs; a mark that it was cancelled goes."""
    _write_jobs(run, jobs)
    (folder_of(run) / _CANCELLED).unlink(missing_ok=True)


def replace_job(run: Path, old: Submitted, new: Submitted) -> None:
    """Put one job in the place of another."""
    _write_jobs(run, [new if job.id == old.id else job for job in read_jobs(run)])


def _write_jobs(run: Path, jobs: list[Submitted]) -> None:
    folder = folder_of(run)
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{_JOBS}.{os.getpid()}"
    partial.write_text(json.dumps([asdict(job) for job in jobs], indent=1) + "\n", encoding="utf-8")
    os.replace(partial, folder / _JOBS)


def read_jobs(run: Path) -> list[Submitted]:
    """The jobs of a run folder, in order; none where it was never submitted."""
    file = folder_of(run) / _JOBS
    try:
        return [Submitted(**job) for job in json.loads(file.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(f"{file}: cannot be read ({error})") from error


def add_attempt(run: Path, attempt: Attempt) -> None:
    """Tasks of an array have a file each: they end together, and not every file system appends whole lines then."""
    name = _ATTEMPTS if attempt.task is None else _ATTEMPTS.replace(".", f"-task-{attempt.task}.")
    records.append(folder_of(run) / name, asdict(attempt))


def read_attempts(run: Path) -> list[Attempt]:
    """Ends of all starts so far, oldest first for each job and task; a line that a lost node cut short is left out."""
    files = sorted(folder_of(run).glob(_ATTEMPTS.replace(".", "*.")))
    return [Attempt(**record) for file in files for record in records.read(file)]


def add_left_out(run: Path, one: LeftOut) -> None:
    folder_of(run).mkdir(parents=True, exist_ok=True)
    records.append(folder_of(run) / _LEFT_OUT, asdict(one))


def read_left_out(run: Path, job: Submitted) -> list[LeftOut]:
    """Nodes that a job of this folder is kept from beside `cluster.exclude`, oldest first."""
    found = [LeftOut(**record) for record in records.read(folder_of(run) / _LEFT_OUT)]
    return [one for one in found if one.job in job.ids]


def mark_cancelled(run: Path) -> None:
    """From now on a job of this folder that stops is not queued again."""
    folder_of(run).mkdir(parents=True, exist_ok=True)
    (folder_of(run) / _CANCELLED).touch()


def is_cancelled(run: Path) -> bool:
    return (folder_of(run) / _CANCELLED).exists()
