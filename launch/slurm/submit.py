"""`megaphone run ... launcher=slurm`: scripts written into the run folders, submitted, chained by `afterok`."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from configs.checks import check, check_corpus
from configs.checks.cluster import check_cluster, processes
from configs.references import stage_in
from configs.schema import Config
from launch.earlier import settled
from launch.runfolder import is_finished, prepare
from launch.slurm import record
from launch.slurm.jobs import TRAIN, Planned, corpus_jobs, planned, run_folder
from launch.slurm.queue import ENDED, own_environment, states
from launch.slurm.record import Submitted
from launch.slurm.script import render
from launch.slurm.sizes import require_sizes
from launch.training import check_ranks, require_corpus
from runtime.exits import BadInput


def submit(stages: Sequence[Config], words: Sequence[str]) -> list[Submitted]:
    """Check every stage, write its run folder and scripts, and submit the chain. Returns the jobs in order.

    `words` are the command line's. A stage that is trained already is only finished; one whose jobs are still in the
    queue is refused. Where sbatch refuses one job, those submitted before it are cancelled: all or nothing.
    """
    _require_sbatch()
    stages = [settled(config) for config in stages]
    for config in stages:
        check(config)
        check_ranks(config, processes(config.cluster))
        require_sizes(config)
        _refuse_queued(run_folder(config))
    built, done = [_is_built(config) for config in stages], [is_finished(config) for config in stages]
    return _submit_all(planned(stages, words, built, done, _learns))


def submit_corpus(config: Config, words: Sequence[str]) -> list[Submitted]:
    """The same for the jobs that build a corpus alone; none where it is there."""
    _require_sbatch()
    check_corpus(config)
    check_cluster(config)
    _refuse_queued(run_folder(config))
    return [] if _is_built(config) else _submit_all(corpus_jobs(config, words, _learns(config)))


def _submit_all(jobs: Sequence[Planned]) -> list[Submitted]:
    """Write the scripts and submit them, all or none."""
    scripts = [_write(one) for one in jobs]
    submitted: list[Submitted] = []
    try:
        for one, script in zip(jobs, scripts, strict=True):
            after = None if one.after is None else submitted[one.after].id
            later = [str(other.job.folder) for other in jobs[len(submitted) + 1 :] if other.kind == TRAIN]
            submitted.append(_submitted(one, sbatch(script, *_chained(after)), later))
    except BadInput:
        if submitted:
            subprocess.run(["scancel", *(str(job.id) for job in submitted)], check=False)
        raise
    for folder in dict.fromkeys(one.job.folder for one in jobs):
        mine = [job for one, job in zip(jobs, submitted, strict=True) if one.job.folder == folder]
        record.write_jobs(folder, mine)
    return submitted


def _require_sbatch() -> None:
    if shutil.which("sbatch") is None:
        raise BadInput("launcher=slurm: there is no sbatch here; run this where jobs are submitted from")


def _submitted(one: Planned, number: int, later: Sequence[str]) -> Submitted:
    """later: run folders of the stages after it."""
    cluster, restarts = one.config.cluster, one.config.resilience.restarts
    ranks, nodes, later = (processes(cluster), cluster.nodes, later) if one.kind == TRAIN else (0, 1, ())
    return Submitted(one.kind, number, one.job.name, ranks, cluster.requeues, restarts, nodes, later)


def _write(one: Planned) -> Path:
    """The job's script, and the run folder it belongs to."""
    prepare(one.config)
    script = record.folder_of(one.job.folder) / f"{one.kind}.sbatch"
    try:
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(render(one.job, one.config.cluster), encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{script}: {error.strerror or error}") from error
    return script


def _chained(after: int | None) -> list[str]:
    """Options of a job that runs once job `after` has ended well."""
    return [] if after is None else [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"]


def sbatch(script: Path, *options: str) -> int:
    """Submit a script, options going before its own. Returns the job's number."""
    said = subprocess.run(
        ["sbatch", "--parsable", *options, str(script)], capture_output=True, text=True, env=own_environment(os.environ)
    )
    if said.returncode:
        raise BadInput(f"sbatch {script}: {' '.join(said.stderr.split()) or f'exited with {said.returncode}'}")
    return int(said.stdout.strip().partition(";")[0])


def _refuse_queued(folder: Path) -> None:
    before = record.read_jobs(folder)
    running = [number for number, state in states([job.id for job in before]).items() if state.name not in ENDED]
    if running:
        raise BadInput(f"{folder}: job {running[0]} is still there; see megaphone status, or megaphone cancel it first")


def _learns(config: Config) -> bool:
    from data_pipeline.build import learns_codebooks

    return learns_codebooks(config)


def _is_built(config: Config) -> bool:
    """Whether the stage's corpus is there, or is made by an earlier stage."""
    if stage_in(config.corpus.folder) is not None:
        return True
    try:
        require_corpus(config)
    except BadInput:
        if config.corpus.folder is not None:
            raise
        return False
    return True
