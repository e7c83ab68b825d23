"""The jobs that a recipe's stages come to, in order, each waiting for the one before."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.checks.cluster import processes
from configs.schema import Config
from launch.slurm.script import Job

CORPUS, TRAIN, FINISH = "corpus", "train", "finish"


@dataclass(frozen=True)
class Planned:
    """A job, what it is for, and which of the jobs before it has to end well first (its place in the list)."""

    kind: str
    job: Job
    config: Config
    after: int | None


def planned(
    stages: Sequence[Config], words: Sequence[str], built: Sequence[bool], done: Sequence[bool]
) -> list[Planned]:
    """Jobs of a run's stages.

    words: the command line that the stages were composed from, for the corpus job. built: whether each stage's corpus
    is there. done: whether each stage is trained to its end already.
    """
    jobs: list[Planned] = []
    chain: int | None = None
    made: set[str] = set()
    for config, is_built, is_done in zip(stages, built, done, strict=True):
        corpus = config.corpus.folder or config.corpus.name
        if not is_built and corpus not in made:
            made.add(corpus)
            jobs.append(Planned(CORPUS, _job(config, CORPUS, _corpus_command(config, words)), config, chain))
            chain = len(jobs) - 1
        if not is_done:
            jobs.append(Planned(TRAIN, _job(config, TRAIN, _train_command(config)), config, chain))
            chain = len(jobs) - 1
        jobs.append(Planned(FINISH, _job(config, FINISH, _finish_command(config)), config, chain))
    return jobs


def _job(config: Config, kind: str, command: tuple[str, ...]) -> Job:
    cluster, stage = config.cluster, f"stage {config.stage.name} of {config.run.name}"
    about = {
        CORPUS: f"Builds corpus {config.corpus.name}.",
        TRAIN: f"Trains {stage}, going on from its newest checkpoint.",
        FINISH: f"Exports {stage}, checks the export and writes the report.",
    }
    return Job(
        name=f"{config.run.name}-{config.stage.name}" + ("" if kind == TRAIN else f"-{kind}"),
        about=about[kind],
        folder=run_folder(config),
        command=command,
        python=sys.executable,
        directory=Path.cwd(),
        ranks_per_node=processes(cluster) // cluster.nodes if kind == TRAIN else 0,
    )


def run_folder(config: Config) -> Path:
    """The run folder, absolute but with links kept: nodes know the name that the user knows."""
    return Path.cwd() / config.run.folder


def _corpus_command(config: Config, words: Sequence[str]) -> tuple[str, ...]:
    """`words` are of all stages: a recipe's corpora may differ from stage to stage."""
    stage = () if config.recipe is None else (f"stage={config.stage.name}",)
    return ("-m", "launch.cli", "data", "build", *words, *stage)


def _train_command(config: Config) -> tuple[str, ...]:
    """torchrun takes `-m launch.cli` as a module to run, just as the interpreter does."""
    return ("-m", "launch.cli", "train", "--folder", str(run_folder(config)))


def _finish_command(config: Config) -> tuple[str, ...]:
    return ("-m", "launch.cli", "finish", str(run_folder(config)))
