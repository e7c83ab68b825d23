"""What each `megaphone` command does: thin wiring between a command line and the rooms that do the work."""

from __future__ import annotations

import os
import signal
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from configs.audio_input import audio_input_of
from configs.compose import to_yaml
from configs.schema import Config, Launcher, StageKind
from launch import training
from launch.data_commands import build_corpus
from launch.earlier import settled
from launch.notify import hide_words
from launch.runfolder import STEPPING, is_finished, load_run
from launch.selection import read_words
from runtime import startup
from runtime.exits import DONE, STOPPED_EARLY, BadInput, StoppedEarly
from runtime.log_lines import Level
from runtime.run_files import AUDIO_EXPORT, CONFIG_FILE, EXPORT, EXPORT_CHECK, METRICS_FILE, REPORT_FILE, RESULTS_FILE
from runtime.signals import stoppable


def run(options: Namespace) -> int:
    """Every stage of a recipe: corpus, training, export, report. What is finished already is not done again."""
    words = hide_words(options.settings)
    stages = read_words(words).stages()
    if options.cfg:
        return _print_configs(stages)
    if stages[0].launcher is Launcher.slurm:
        return _submit(stages, words)
    for config in stages:  # all of them, before the first one starts
        training.check_local(settled(config))
    for config in stages:
        code = _run_stage(settled(config))
        _write_whole_report(config)
        if code != DONE:
            return code
    for config in stages:
        _say_results(Path(config.run.folder))
    if len(stages) > 1:
        print(f"\nAll of it: {_whole(stages[0]) / REPORT_FILE}")
    return DONE


def train(options: Namespace) -> int:
    """One stage, as a rank of the process group around it or with ranks of its own."""
    config = _stage_meant(options)
    if options.cfg:
        return _print_configs([config])
    group = training.process_group(os.environ)
    if group is not None:
        training.join(config, group)
    return training.train_locally(config)


def preflight(options: Namespace) -> int:
    """Look at the nodes, as a rank of the process group around this process or with ranks of this machine's own."""
    from launch.preflight.command import locally, look

    config = _stage_meant(options)
    group = training.process_group(os.environ)
    if group is not None:
        look(config, group)
    words = ["--folder", options.folder] if options.folder else options.settings
    return locally(config, words)


def report(options: Namespace) -> int:
    folder = Path(options.run_folder)
    if (folder / CONFIG_FILE).is_file():
        print(_write_report(folder))
        return DONE
    from launch.status import stages_of
    from train.report import write_whole_report

    print(write_whole_report(folder, stages_of(folder)))
    return DONE


def finish(options: Namespace) -> int:
    config = load_run(Path(options.run_folder))
    if not is_finished(config):
        raise BadInput(f"{options.run_folder} is not trained to its end yet")
    code = _finish_stage(config)
    _write_whole_report(config)
    return code


def status(options: Namespace) -> int:
    from launch.status import describe

    print("\n".join(describe(Path(options.run_folder))))
    return DONE


def logs(options: Namespace) -> int:
    from launch.logs.show import Wanted, moment, ranks_of, show

    wanted = Wanted(
        None if options.rank is None else ranks_of(options.rank),
        None if options.node is None else frozenset(options.node),
        Level[options.level],
        None if options.since is None else moment(options.since),
    )
    try:
        show(Path(options.run_folder), wanted, options.stage, follow=options.follow)
    except StoppedEarly:  # Ctrl-C is how one stops following
        if not options.follow:
            raise
    return DONE


def cancel(options: Namespace) -> int:
    from launch.slurm.cancel import cancel as cancel_jobs
    from launch.status import stages_of

    cancelled = [number for run in stages_of(Path(options.run_folder)) for number in cancel_jobs(run)]
    _say(f"cancelled: {', '.join(map(str, cancelled))}" if cancelled else "no job of this run is in the queue")
    return DONE


# --- parts of a run -------------------------------------------------------------------------------------------------


def _stage_meant(options: Namespace) -> Config:
    """The stage of `--folder`, with the settings saved in it, or of the words of the command line."""
    if options.folder and options.settings:
        raise BadInput("--folder takes the settings saved in the run folder; leave out the others")
    return settled(load_run(Path(options.folder)) if options.folder else read_words(options.settings).one())


def _run_stage(config: Config) -> int:
    folder = Path(config.run.folder)
    build_corpus(config)
    startup.begin()  # of this stage
    if not is_finished(config):
        asked: list[int] = []
        code = training.train_locally(config, asked)
        if code not in (DONE, STOPPED_EARLY):
            return code
        if code == DONE:
            _heed(asked)
        if config.stage.kind in STEPPING:
            _write_report(folder)
        if code == STOPPED_EARLY:
            return code
    return _finish_stage(config)


def _finish_stage(config: Config) -> int:
    """What comes after a stage's last step: export, its check, the report."""
    folder = Path(config.run.folder)
    results = folder / RESULTS_FILE
    export = config.export.huggingface and config.stage.kind in (StageKind.train, StageKind.merge)
    if export and _older(folder / EXPORT, results):
        export_run(config)
    if export and config.stage.kind is StageKind.train and _older(folder / EXPORT_CHECK, folder / EXPORT):
        asked: list[int] = []
        code = training.check_export(config, asked)
        if code == DONE:
            _heed(asked)
        else:
            (folder / EXPORT_CHECK).unlink(missing_ok=True)  # so that the same command checks again
            return code
    if config.stage.kind in STEPPING and _older(folder / REPORT_FILE, results):
        _write_report(folder)
    return DONE


def _heed(asked: list[int]) -> None:
    """Stop for a signal that came when the ranks were done already, and so ended nothing there."""
    if asked:
        raise StoppedEarly(f"stopped by {signal.Signals(asked[0]).name}; the same command goes on from what is done")


def _submit(stages: list[Config], words: Sequence[str]) -> int:
    from launch.slurm.submit import submit

    for job in submit(stages, words):
        print(f"{job.kind:<8} job {job.id}: {job.name}")
    shared = Path(stages[0].run.folder) if len(stages) == 1 else Path(stages[0].run.folder).parent
    _say(f"submitted; see megaphone status {shared}")
    return DONE


def export_run(config: Config) -> Path:
    """The newest usable checkpoint of a run as a Hugging Face folder, which is returned; adapter and encoder, which no
    class of transformers knows, as files beside."""
    from checkpoints.audio_input import export_audio_input
    from checkpoints.convert import export_huggingface
    from checkpoints.readers import reading
    from checkpoints.store import newest_usable
    from data_pipeline.vocabulary import Vocabulary

    folder = Path(config.run.folder)
    checkpoint = newest_usable(folder / "checkpoints", log=_say)
    if checkpoint is None:
        raise BadInput(f"{folder} has no usable checkpoint to export")
    vocabulary = Vocabulary.load(checkpoint)
    audio = audio_input_of(config)
    with reading(checkpoint), stoppable() as stop:
        if audio is not None:
            export_audio_input(checkpoint, folder / AUDIO_EXPORT, audio, config.export.dtype)
            _say(f"adapter exported to {folder / AUDIO_EXPORT}")
        return export_huggingface(
            checkpoint,
            folder / EXPORT,
            config.backbone,
            vocabulary=vocabulary.describe(),
            tokenizer_json=vocabulary.tokenizer_json,
            token_names=[vocabulary.token_name(index) for index in range(vocabulary.text_size, vocabulary.size)],
            dtype=config.export.dtype,
            stop=stop,
        )


def _say(line: str) -> None:
    print(f"megaphone: {line}", flush=True)


def _write_report(folder: Path) -> Path:
    from train.report import write_report

    return write_report(folder)


def _whole(config: Config) -> Path:
    """The folder of the run that a stage belongs to."""
    return Path(config.run.folder).parent


def _write_whole_report(config: Config) -> None:
    """The page about all stages of the run so far, where there are several."""
    from launch.status import stages_of
    from train.report import write_whole_report

    if config.recipe is not None and Path(config.run.folder).name == config.stage.name:
        write_whole_report(_whole(config), stages_of(_whole(config)))


def _print_configs(stages: list[Config]) -> int:
    print("---\n".join(to_yaml(config) for config in stages), end="")
    return DONE


def _older(product: Path, source: Path) -> bool:
    """Whether `product` is not there, or was made before `source`."""
    return not product.exists() or product.stat().st_mtime < source.stat().st_mtime


def _say_results(folder: Path) -> None:
    print(f"\nResults in {folder}:")
    for name in (CONFIG_FILE, METRICS_FILE, REPORT_FILE, "checkpoints", EXPORT, AUDIO_EXPORT):
        if (folder / name).exists():
            print(f"  {folder / name}")
