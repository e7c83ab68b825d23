"""What each `megaphone checkpoint` command does: thin wiring between a command line and `checkpoints`."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from configs.schema import Config, NewRows, ParallelConfig, Precision
from runtime.exits import BAD_INPUT, DONE, FAILED, STOPPED_EARLY, BadInput
from runtime.share import Share
from runtime.signals import stoppable

if TYPE_CHECKING:
    from checkpoints.card import LogitsAgreement
    from checkpoints.conversion.job import Job

LOGITS_CHECK = "train.logits_check"

# --- of runs and backbones ----------------------------------------------------------------------------------------


def checkpoint_inspect(options: Namespace) -> int:
    from checkpoints.inspect import describe

    print(describe(Path(options.folder)))
    return DONE


def checkpoint_verify(options: Namespace) -> int:
    from checkpoints.inspect import verify

    problems = verify(Path(options.folder))
    if problems:
        raise BadInput("; ".join(problems))
    print(f"{options.folder}: complete and undamaged")
    return DONE


def checkpoint_import(options: Namespace) -> int:
    from launch.selection import read_words
    from train.weights import prepare, source

    config = read_words(options.settings).first()
    prepare(config)
    native = source(config)
    if native is None:
        raise BadInput(f"backbone {config.backbone.name} has no weights to import: it starts at random")
    print(native)
    return DONE


def checkpoint_export(options: Namespace) -> int:
    from launch.commands import export_run
    from launch.runfolder import load_run

    print(export_run(load_run(Path(options.run_folder))))
    return DONE


# --- tools ----------------------------------------------------------------------------------------------------------


def checkpoint_diff(options: Namespace) -> int:
    """0: equal; 1: not."""
    from checkpoints.tools.compare import compare_folders, lines

    found = compare_folders(
        Path(options.a), Path(options.b), patterns=options.match or ["*"], optimizer=not options.weights_only
    )
    print("\n".join(lines(found, options.within, every=options.all)))
    return DONE if found.equal(options.within) else FAILED


def checkpoint_average(options: Namespace) -> int:
    from checkpoints.tools.average import average, exponential_weights
    from checkpoints.tools.opening import checkpoints_of

    given = [Path(folder) for folder in options.checkpoints]
    checkpoints = checkpoints_of(given[0]) if len(given) == 1 else given
    if options.last:
        checkpoints = checkpoints[-options.last :]
    if options.ema is not None:
        weights = exponential_weights(len(checkpoints), options.ema)
    else:
        weights = _numbers(options.weights) if options.weights else [1.0] * len(checkpoints)
    print(average(checkpoints, weights, Path(options.out), _dtype(options)))
    return DONE


def checkpoint_extract(options: Namespace) -> int:
    from checkpoints.tools.extract import extract, extract_lora

    folder, out = Path(options.folder), Path(options.out)
    if options.lora == bool(options.match):
        raise BadInput("say what to take: --match PATTERN, or --lora for the low-rank factors")
    if options.lora:
        print(extract_lora(folder, out, _dtype(options)))
    else:
        print(extract(folder, out, options.match, _dtype(options)))
    return DONE


def checkpoint_merge(options: Namespace) -> int:
    from checkpoints.lora import merge
    from checkpoints.tools.opening import checkpoints_of, new_place

    print(merge(checkpoints_of(Path(options.folder))[-1], new_place(Path(options.out))))
    return DONE


def checkpoint_consolidate(options: Namespace) -> int:
    from checkpoints.tools.extract import consolidate

    print(
        consolidate(Path(options.folder), Path(options.out), optimizer=options.optimizer, dtype=_dtype(options)),
    )
    return DONE


def checkpoint_reshard(options: Namespace) -> int:
    from checkpoints.tools.reshard import reshard

    optimizer = not options.drop_optimizer
    print(reshard(Path(options.folder), Path(options.out), _parallel(options), optimizer=optimizer))
    return DONE


def checkpoint_vocab(options: Namespace) -> int:
    from checkpoints.tools.vocabulary import Wanted, change_vocabulary, read_vocabulary

    like, files = read_vocabulary(Path(options.like)) if options.like else (None, None)
    wanted = Wanted(options.rows, like, files, options.multiple, options.tensor, options.used)
    copied = tuple(int(number) for number in _numbers(options.copy.replace(",", ":"))) if options.copy else ()
    change = change_vocabulary(
        Path(options.folder),
        Path(options.out),
        wanted,
        new_rows=NewRows(options.new_rows),
        copied=copied,
        seed=options.seed,
        optimizer=options.optimizer,
        dtype=_dtype(options),
    )
    print(change)
    return DONE


# --- DeepSpeed --------------------------------------------------------------------------------------------------------


def checkpoint_to_universal(options: Namespace) -> int:
    from checkpoints.tools.opening import checkpoints_of, new_place
    from checkpoints.training_state import export_universal

    with stoppable() as stop:
        print(export_universal(checkpoints_of(Path(options.folder))[-1], new_place(Path(options.out)), stop))
    return DONE


def checkpoint_from_deepspeed(options: Namespace) -> int:
    from checkpoints.tools.opening import checkpoints_of, new_place
    from checkpoints.training_state import import_training_state

    like = checkpoints_of(Path(options.like))[-1] if options.like else None
    with stoppable() as stop:
        print(import_training_state(Path(options.folder), new_place(Path(options.out)), like, stop))
    return DONE


def _parallel(options: Namespace) -> ParallelConfig:
    """The topology that files are cut for."""
    return ParallelConfig(
        tensor=options.tensor,
        pipeline=options.pipeline,
        virtual_pipeline=options.virtual_pipeline,
        pipeline_layout=options.pipeline_layout,
    )


def _dtype(options: Namespace) -> Precision | None:
    return Precision(options.dtype) if options.dtype else None


def _numbers(words: str) -> list[float]:
    """Numbers between colons. Raises BadInput where there are others."""
    try:
        return [float(word) for word in words.split(":")]
    except ValueError as error:
        raise BadInput(f"{words}: numbers with colons between them are wanted, such as 5:5:1") from error


# --- conversion -----------------------------------------------------------------------------------------------------


def checkpoint_convert(options: Namespace) -> int:
    """A checkpoint of any format as a native one, a Hugging Face folder, bare safetensors, or DeepSpeed's universal
    folder."""
    from checkpoints.conversion.engine import How, run
    from checkpoints.conversion.job import Target
    from checkpoints.conversion.wanted import Wanted, plan_job
    from checkpoints.dtypes import DTYPES
    from checkpoints.tools.opening import new_place

    source, destination = Path(options.source), Path(options.destination)
    share = _share(options.share)
    if share.tasks > 1 and destination.exists():
        print(f"{destination} is there already")
        return DONE
    new_place(destination)
    backbone = _model(options.settings).backbone if options.settings else None
    with stoppable() as stop:
        if options.to == "universal":
            from checkpoints.training_state import export_universal

            print(export_universal(source, destination, stop))
            return DONE
        dtype = _dtype(options)
        wanted = Wanted(
            target=Target(options.to) if options.to else None,
            backbone=backbone,
            parallel=_parallel(options),
            dtype=DTYPES[dtype] if dtype else None,
            rows=options.rows,
            used=options.used,
            seed=options.seed,
            new_rows=NewRows(options.new_rows),
            shard_bytes=int(options.shard_gigabytes * 1e9),
            nonfinite=options.allow_nan,
        )
        job, beside = plan_job(source, destination, wanted)
        logits = _logits(job) if options.logits else None
        how = How(workers=options.workers, share=share, stop=stop, check=options.check, logits=logits)
        result = run(job, destination, beside, how)
    if result is None:
        return STOPPED_EARLY
    from checkpoints.card import read_card

    card = read_card(result)
    print(f"{result}: {card.verdict}")
    return FAILED if card.differs else DONE


def checkpoint_plan(options: Namespace) -> int:
    """Names, shapes and bytes of every file of a native checkpoint, from the config alone."""
    from checkpoints.conversion.dry_plan import as_json, as_table, plan

    config = _model(options.settings)
    planned = plan(config.backbone, config.parallel, options.rows, "bfloat16" if options.dtype != "fp32" else "float32")
    print(as_json(planned) if options.json else as_table(planned, full=options.full))
    return DONE


def _logits(job: Job) -> Callable[[Path], LogitsAgreement]:
    """What compares a result with its source, one of them native and the other at home in transformers."""
    from checkpoints.conversion.job import Target
    from checkpoints.conversion.reading import is_huggingface

    if job.target is Target.safetensors or (job.target is Target.native) != is_huggingface(job.source):
        raise BadInput("--logits compares a native checkpoint with a Hugging Face folder; this conversion has not both")
    if job.target is Target.native:
        return lambda made: _agreement(made, job.source)
    return lambda made: _agreement(job.source, made)


def _agreement(native: Path, huggingface: Path) -> LogitsAgreement:
    """In a process of its own, which alone imports what models need."""
    from checkpoints.card import LogitsAgreement

    command = [sys.executable, "-m", LOGITS_CHECK, str(native), str(huggingface)]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    if told.returncode == BAD_INPUT:
        raise BadInput(told.stderr.strip().splitlines()[-1])
    if told.returncode != DONE:
        raise RuntimeError(f"{LOGITS_CHECK} failed:\n{told.stderr}")
    return LogitsAgreement(**json.loads(told.stdout.splitlines()[-1]))


_NEEDLESS = {
    "codec": "mimi",
    "corpus": "quickstart",
    "mixture": "quickstart",
    "run.name": "none",
    "run.folder": "none",
}


def _model(settings: list[str]) -> Config:
    """A config whose backbone and parallel settings alone are wanted, so that no recipe or codec has to be named."""
    from launch.selection import read_words  # composes configs, for which there is no need elsewhere

    given = {word.partition("=")[0] for word in settings}
    needless = [] if "recipe" in given else [f"{key}={name}" for key, name in _NEEDLESS.items() if key not in given]
    return read_words([*settings, *needless]).one()


def _share(words: str | None) -> Share:
    """K/N, K from 0 on. Raises BadInput for anything else."""
    if words is None:
        return Share()
    task, _, tasks = words.partition("/")
    if not (task.isdecimal() and tasks.isdecimal() and int(task) < int(tasks)):
        raise BadInput(f"--share {words}: a task and their number are wanted, tasks from 0 on, such as 0/4")
    return Share(int(task), int(tasks))
