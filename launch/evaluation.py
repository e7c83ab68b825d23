"""Measuring what a stage has trained: validation losses of its checkpoint, or what an evaluation asks of its export."""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from configs.checks import check
from configs.schema import Config, ParallelConfig, StageKind
from launch import training
from launch.earlier import require_settled, settled
from launch.local import run_ranks
from launch.runfolder import prepare
from launch.selection import read_words
from runtime.exits import BadInput
from runtime.run_files import EXPORT

FOLDER = "evaluation"  # of a run folder; a folder in it for each evaluation, by name


def evaluate(options: Namespace) -> int:
    """With `evaluation=<name>` its measurements of the stage's export, in the run folder's evaluation/<name>; without,
    validation losses of its newest checkpoint, for which nothing in the run folder changes."""
    config = settled(read_words(options.settings).one())
    if config.stage.kind is StageKind.evaluate:
        return training.train_locally(config)
    if not config.evaluation.measurements:
        return training.evaluate_locally(config)
    require_settled(config)
    meant = of_stage(config)
    check(meant)
    file = prepare(meant)
    command = [sys.executable, "-m", training.MODULES[StageKind.evaluate], str(file)]
    return run_ranks(command, ranks=1, logs=Path(meant.run.folder) / "logs")


def of_stage(config: Config) -> Config:
    """A stage of kind evaluate that measures what the stage `config` has trained. Raises BadInput where that has no
    export."""
    run = Path(config.run.folder)
    model = config.evaluation.model or str(run / EXPORT)
    if not (Path(model) / "config.json").is_file():
        raise BadInput(
            f"{model} holds no export to measure; train and export the stage first, or give evaluation.model"
        )
    return replace(
        config,
        run=replace(config.run, folder=str(run / FOLDER / config.evaluation.name)),
        stage=replace(config.stage, kind=StageKind.evaluate),
        evaluation=replace(config.evaluation, model=model),
        parallel=ParallelConfig(),
    )
