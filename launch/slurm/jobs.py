"""The jobs that a recipe's stages come to, in order, each waiting for the one before."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.checks.cluster import processes
from configs.schema import Config, CorpusJobConfig
from launch.slurm.script import Job

FEATURES, CORPUS, MERGE, TRAIN, FINISH = "features", "corpus", "merge", "train", "finish"


@dataclass(frozen=True)
class Planned:
    """A job, what it is for, and which of the jobs before it has to end well first (its place in the list)."""

    kind: str
    job: Job
    config: Config
    after: int | None


def planned(
    stages: Sequence[Config],
    words: Sequence[str],
    built: Sequence[bool],
    done: Sequence[bool],
    learns: Callable[[Config], bool],
) -> list[Planned]:
    """Jobs of a run's stages.

    words: the command line that the stages were composed from, for the corpus job. built: whether each stage's corpus
    is there. done: whether each stage is trained to its end already. learns: whether a stage's codebooks are learnt
    from its corpus.
    """
    jobs: list[Planned] = []
    chain: int | None = None
    made: set[str] = set()
    for config, is_built, is_done in zip(stages, built, done, strict=True):
        corpus = config.corpus.folder or config.corpus.name
        if not is_built and corpus not in made:
            made.add(corpus)
            jobs += corpus_jobs(config, words, learns(config), chain, len(jobs))
            chain = len(jobs) - 1
        if not is_done:
            jobs.append(Planned(TRAIN, _job(config, TRAIN, _train_command(config)), config, chain))
            chain = len(jobs) - 1
        jobs.append(Planned(FINISH, _job(config, FINISH, _finish_command(config)), config, chain))
    return jobs


def corpus_jobs(
    config: Config, words: Sequence[str], learns: bool, after: int | None = None, place: int = 0
) -> list[Planned]:
    """The jobs that build a corpus, the first of them at `place` of the list and after job `after` of it.

    Tasks of an array do not wait for each other: that could take the nodes of those that they wait for. So where
    codebooks are learnt from what all tasks have made, an array makes that first; and a last job merges.
    """
    commands: list[tuple[str, tuple[str, ...]]] = [(CORPUS, ("data", "build"))]
    if config.cluster.corpus.tasks > 1:
        first = [(FEATURES, ("data", "build", "--features"))] if learns else []
        commands = [*first, *commands, (MERGE, ("data", "merge"))]
    jobs: list[Planned] = []
    for kind, command in commands:
        jobs.append(Planned(kind, _job(config, kind, _corpus_command(config, command, words)), config, after))
        after = place + len(jobs) - 1
    return jobs


def _job(config: Config, kind: str, command: tuple[str, ...]) -> Job:
    cluster, stage = config.cluster, f"stage {config.stage.name} of {config.run.name}"
    about = {
        FEATURES: f"Makes what the codebooks of corpus {config.corpus.name} are learnt from.",
        CORPUS: f"Builds corpus {config.corpus.name}.",
        MERGE: f"Finishes corpus {config.corpus.name}, whose shards are all there.",
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
        parts=cluster.corpus if kind in (FEATURES, CORPUS) else CorpusJobConfig(),
    )


def run_folder(config: Config) -> Path:
    """The run folder, absolute but with links kept: nodes know the name that the user knows."""
    return Path.cwd() / config.run.folder


def _corpus_command(config: Config, command: Sequence[str], words: Sequence[str]) -> tuple[str, ...]:
    """`words` are of all stages: a recipe's corpora may differ from stage to stage. The job itself submits nothing."""
    chosen = [word for word in words if not word.startswith(("launcher=", "stage="))]
    stage = () if config.recipe is None else (f"stage={config.stage.name}",)
    return ("-m", "launch.cli", *command, *chosen, "launcher=local", *stage)


def _train_command(config: Config) -> tuple[str, ...]:
    """torchrun takes `-m launch.cli` as a module to run, just as the interpreter does."""
    return ("-m", "launch.cli", "train", "--folder", str(run_folder(config)))


def _finish_command(config: Config) -> tuple[str, ...]:
    return ("-m", "launch.cli", "finish", str(run_folder(config)))
