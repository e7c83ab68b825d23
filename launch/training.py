"""One stage, started: as ranks of this machine, or as one rank of a process group that is there already."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from configs.audio_input import audio_input_of
from configs.checks import check
from configs.checks.topology import data_parallel_size, model_parallel_size
from configs.schema import Config, StageKind
from launch.earlier import require_settled
from launch.environment import gpus
from launch.local import run_ranks
from launch.recovery.local import train
from launch.runfolder import prepare, refuse_other_run, wait_for_prepared
from runtime import startup
from runtime.exits import BadInput, tell
from runtime.log_lines import end_output, stamp_output
from runtime.run_files import CONFIG_FILE

# The doors to training: modules that are run, one process a rank.
MODULES = {
    StageKind.train: "train.stage",
    StageKind.decoder: "train.decoder",
    StageKind.generate: "train.generation",
    StageKind.merge: "train.merge",
    StageKind.evaluate: "train.evaluation",
}
EVALUATION = "train.evaluate"
EXPORT_CHECK = "train.export_check"
DEFAULT_PORT = "29500"


def local_ranks(config: Config) -> int:
    """Ranks to start on this machine: one a GPU where there are any, else what the topology asks for.

    Raises BadInput where the GPUs do not fit the topology.
    """
    model = model_parallel_size(config)
    wanted = model * data_parallel_size(config)
    count = len(gpus())
    if not count:
        return wanted
    advice = "set parallel.tensor, parallel.pipeline or CUDA_VISIBLE_DEVICES (empty: run on the CPU)"
    if config.parallel.data is not None:
        if wanted > count:
            raise BadInput(f"the topology needs {wanted} GPUs and {count} are visible; {advice}")
        return wanted
    if count % model:
        raise BadInput(f"a model over {model} ranks does not fill {count} visible GPUs; {advice}")
    return count


def check_local(config: Config) -> None:
    """Raise BadInput for whatever would keep this stage from running here: settings, GPUs, another run's folder."""
    check(config)
    check_ranks(config, local_ranks(config))


def check_ranks(config: Config, ranks: int) -> None:
    """The same for a number of ranks, wherever they are."""
    from checkpoints.maps import check_architecture

    check(config, ranks)
    check_architecture(config)
    audio = audio_input_of(config)
    if audio is not None and audio.encoder.in_model:
        from data_pipeline.codecs.encoder_sizes import check_sizes

        check_sizes(audio.encoder)
    refuse_other_run(config)


def require_corpus(config: Config) -> None:
    """Raise BadInput where the corpus of this stage is not there, or not finished."""
    from data_pipeline.build import corpus_folder
    from data_pipeline.corpus import Corpus

    require_settled(config)
    folder = corpus_folder(config)
    if config.corpus.folder is None and not folder.is_dir():
        raise BadInput(f"corpus {config.corpus.name} is not built yet; build it with: megaphone data build ...")
    Corpus.open(folder)


def require_made_from(config: Config) -> None:
    """Raise BadInput where what this stage works on is not there, or does not go together: its corpus, models of the
    same codebooks and, of one that generates speech which is heard, the decoder and judges."""
    from launch.codebooks import require_same_codebooks

    require_corpus(config)
    require_same_codebooks(config)
    if config.stage.kind is StageKind.generate:
        from train.generation.hearing import require_judges

        require_judges(config)


def train_locally(config: Config, asked: list[int] | None = None) -> int:
    """Start this stage's ranks on this machine and wait for them; returns the exit code. `asked` takes the stop signals
    that come meanwhile: one that comes when the last step is done ends nothing, and is for whatever comes next."""
    check_local(config)
    require_made_from(config)
    file = prepare(config)
    startup.passed("config")
    return train([sys.executable, "-m", MODULES[config.stage.kind], str(file)], config, local_ranks(config), asked)


def evaluate_locally(config: Config) -> int:
    """Start ranks that measure the newest checkpoint of this stage's run folder; returns the exit code."""
    check_local(config)
    file = Path(config.run.folder) / CONFIG_FILE
    if not file.is_file():
        raise BadInput(f"{config.run.folder} holds no run of this stage; train it first")
    command = [sys.executable, "-m", EVALUATION, str(file)]
    return run_ranks(command, ranks=local_ranks(config), logs=Path(config.run.folder) / "logs")


def check_export(config: Config, asked: list[int] | None = None) -> int:
    """Compare the logits of a run's export with its checkpoint's, in a process of its own; returns the exit code.
    `asked`: as in `train_locally`."""
    command = [sys.executable, "-m", EXPORT_CHECK, config.run.folder]
    return run_ranks(command, ranks=1, logs=Path(config.run.folder) / "logs", asked=asked)


def process_group(environment: Mapping[str, str]) -> dict[str, str] | None:
    """The process-group variables of an environment that torchrun or srun made; None where neither did.

    Under srun MASTER_ADDR has to be set: a batch script of its own, which also sees SLURM_PROCID, is no rank.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return {}
    if not {"SLURM_STEP_ID", "SLURM_PROCID", "MASTER_ADDR"} <= environment.keys():
        return None
    tasks = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS")
    if tasks is None:
        return None
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": tasks,
        "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
        "MASTER_PORT": environment.get("MASTER_PORT", DEFAULT_PORT),
    }


def join(config: Config, variables: Mapping[str, str]) -> NoReturn:
    """Become one rank of the process group around this process. Rank 0 prepares the run folder for all."""
    os.environ.update(variables)
    stamp_output()
    try:
        file = _prepared(config)
    except BadInput as error:
        tell(error.exit_code)
        raise
    startup.passed("config")
    end_output()
    os.execv(sys.executable, [sys.executable, "-m", MODULES[config.stage.kind], str(file)])


def _prepared(config: Config) -> Path:
    """This rank's config file, once everything is checked that can keep the stage from running."""
    check(config)
    try:
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except ValueError as error:
        raise BadInput(f"RANK and WORLD_SIZE have to be numbers: {error}") from error
    check_ranks(config, world)
    require_made_from(config)
    return prepare(config) if rank == 0 else wait_for_prepared(config)
