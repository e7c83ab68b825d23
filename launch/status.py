"""How runs are doing: their stages, jobs, steps and last figures, from run folders and Slurm's queue."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.schema import Config
from launch.local import last_lines
from launch.recovery import failures
from launch.runfolder import is_finished, load_run
from launch.slurm import record
from launch.slurm.queue import ENDED, State, states
from runtime.exits import DONE, BadInput
from runtime.run_files import CONFIG_FILE, METRICS_FILE

_RECENT = 50  # steps whose pace is taken


@dataclass(frozen=True)
class Place:
    """How far a stage is. seconds_left: at the pace of the last steps, or None where there are none."""

    step: int
    steps: int
    last: dict[str, Any]
    seconds_left: float | None


def stages_of(folder: Path) -> list[Path]:
    """The run folders in `folder`: itself, or one a stage, in the order in which they were prepared."""
    if (folder / CONFIG_FILE).is_file():
        return [folder]
    found = sorted(folder.glob(f"*/{CONFIG_FILE}"), key=lambda file: (_first_job(file.parent), file.stat().st_ctime_ns))
    if not found:
        raise BadInput(f"{folder} is no run folder: it has no {CONFIG_FILE}, and no stage in it has")
    return [file.parent for file in found]


def describe(folder: Path) -> list[str]:
    """Lines of text about every stage of a run."""
    lines: list[str] = []
    for run in stages_of(folder):
        config = load_run(run)
        lines += [
            f"{config.stage.name}: {_state(config, run)}",
            *(f"  {line}" for line in [*_jobs(run), *_failures(run)]),
        ]
    return lines


def place_of(config: Config, run: Path) -> Place:
    """How far a run is, by its metrics."""
    recent = _recent(run / METRICS_FILE)
    if not recent:
        return Place(0, config.train.steps, {}, None)
    last = recent[-1]
    paces = sorted(record["seconds"] for record in recent if isinstance(record.get("seconds"), float | int))
    left = config.train.steps - last["step"]
    return Place(last["step"], config.train.steps, last, paces[len(paces) // 2] * left if paces else None)


def _state(config: Config, run: Path) -> str:
    place = place_of(config, run)
    said = f"step {place.step} of {place.steps}"
    if is_finished(config):
        return f"finished, {said}"
    if place.seconds_left is not None:
        said += f", {_clock(place.seconds_left)} of steps left"
    loss = place.last.get("loss")
    return said + (f", loss {loss:.4f}" if isinstance(loss, float) else "")


def _jobs(run: Path) -> list[str]:
    jobs = record.read_jobs(run)
    now = states([job.id for job in jobs])
    attempts = record.read_attempts(run)
    lines = []
    for job in jobs:
        lines.append(_job_line(job, now[job.id], [one for one in attempts if one.job in job.ids]))
        lines += [f"kept from {one.node} since job {one.by}: {one.why}" for one in record.read_left_out(run, job)]
    return lines


def _failures(run: Path) -> list[str]:
    """The last failure, and the nodes that were blamed more than once."""
    found = failures.read(run)
    often = [f"{node} {times} times" for node, times in failures.blamed(found).items() if times > 1]
    return [*(one.describe() for one in found[-1:]), *([f"blamed so far: {', '.join(often)}"] if often else [])]


def _job_line(job: record.Submitted, state: State, attempts: list[record.Attempt]) -> str:
    line = f"{job.kind} job {job.id}: {state.name.lower()}" + (f" ({state.where})" if state.where else "")
    if attempts:
        newest = {attempt.task: attempt for attempt in attempts}.values()  # of each task of an array
        last = next((attempt for attempt in newest if attempt.code != DONE), attempts[-1])
        task = "" if last.task is None else f"task {last.task}, "
        line += f"; {task}start {last.restart + 1} on {last.nodes}: {last.reason}"
    elif state.name in ENDED and state.name != "COMPLETED":
        line += "; it never came to its end: see its log, or the job before it"
    return line


def _recent(file: Path) -> list[dict[str, Any]]:
    """The last records of a metrics file that may be just being written."""
    records = []
    for line in last_lines(file, _RECENT) if file.is_file() else ():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and isinstance(found.get("step"), int):
            records.append(found)
    return records


def _first_job(run: Path) -> int:
    jobs = record.read_jobs(run)
    return min((job.id for job in jobs), default=0)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
