"""What a stage takes from earlier ones of its recipe by their names: their corpora, and their run folders."""

from __future__ import annotations

from pathlib import Path

from configs.references import references, replaced
from configs.schema import Config, StageKind
from launch.runfolder import load_run
from runtime.exits import BadInput
from runtime.run_files import CONFIG_FILE, MADE


def settled(config: Config) -> Config:
    """The config with references to earlier stages replaced by folders, where those stages have begun; others are left
    as they are."""
    stages = Path(config.run.folder).parent

    def run_of(stage: str) -> str | None:
        return str(stages / stage) if (stages / stage / CONFIG_FILE).is_file() else None

    def corpus_of(stage: str) -> str | None:
        run = run_of(stage)
        return run and _corpus_of(Path(run))

    return replaced(config, corpus_of, run_of)


def require_settled(config: Config) -> None:
    """Raise BadInput where a stage that this one refers to has not begun."""
    for option, stage in references(config):
        raise BadInput(f"{option}=stage:{stage}: that stage has not begun; run the stages in their order")


def _corpus_of(run: Path) -> str:
    config = load_run(run)
    if config.stage.kind is StageKind.generate:
        return str(run / MADE)
    from data_pipeline.build import corpus_folder

    return str(corpus_folder(settled(config)))
