"""The `megaphone` command. This module stays light: everything a command needs is imported when it runs."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from runtime.exits import FAILED, BadInput, StoppedEarly
from runtime.signals import stoppable

OVERRIDES = "settings as key=value in Hydra's grammar, such as recipe=quickstart scale=tiny train.steps=50"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (see runtime.exits)."""
    options = _parser().parse_args(arguments)
    try:
        with stoppable() as stop, stop.at_once("the same command goes on from what is done"):
            module = import_module(f"launch.{options.module}")
            return getattr(module, options.function)(options)
    except (BadInput, StoppedEarly) as error:
        sys.stdout.flush()
        kind = "error: " if isinstance(error, BadInput) else ""
        print(f"megaphone: {kind}{' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()  # whoever read the output has gone; nothing more can be said
        return FAILED
    except Exception:
        traceback.print_exc()
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="megaphone",
        description="Trains speech-text language models: data, stages, checkpoints and reports.",
        epilog="Exit codes: 0 done; 75 stopped early with its progress saved, run it again to go on; "
        "2 bad configuration or input; 1 anything else.",
    )
    commands = parser.add_subparsers(title="commands", metavar="<command>", required=True)

    run = _configured(commands, "run", "all stages of a recipe in order, resuming; then export and report")
    train = _configured(commands, "train", "one stage: joins the process group of torchrun or srun, else starts ranks")
    for command in (run, train):
        command.add_argument("--cfg", action="store_true", help="print the resolved config and exit")
    train.add_argument("--run", metavar="FOLDER", help="the stage of a run folder, with the settings saved in it")
    for name, help_text in (
        ("finish", "export a trained stage, check the export, write its report; what is done is not done again"),
        ("status", "stages, steps, last figures and Slurm jobs of a run"),
        ("cancel", "take a run's Slurm jobs out of the queue; those that run save first"),
    ):
        command = _command(commands, name, help_text, name)
        command.add_argument("run_folder", help="a run folder, such as runs/quickstart")

    data = _group(commands, "data", "build a corpus, look into it, measure and check it")
    _configured(data, "build", "text, speech and codes into shards, or a task's share of them; resumes", "data_build")
    _configured(data, "merge", "finish a corpus whose shards many tasks have written", "data_merge")
    _configured(data, "entropy", "unigram entropy of a corpus's audio codes, nats a token", "data_entropy")

    inspect = _corpus(data, "inspect", "one sample: text, words, codes, spectrogram, and what the loss covers")
    inspect.add_argument("--sample", default="0", metavar="KEY|N", help="its key, or its number from 0 on (0)")
    inspect.add_argument("--split", default="train", choices=("train", "valid"))
    inspect.add_argument("--layout", metavar="NAME", help="a source of the mixture, or a layout: show its tokens")
    inspect.add_argument("--seed", type=int, default=0, metavar="N", help="of what the layout draws (0)")
    inspect.add_argument("--html", metavar="FILE", help="write a page with a player too")
    inspect.add_argument("--spectrogram", metavar="FILE", help="write the spectrogram as a PNG too")
    stats = _corpus(
        data, "stats", "hours, tokens, speakers, licences, distributions and codebook usage, split by split"
    )
    stats.add_argument("--json", metavar="FILE", help="write them to a file too")
    stats.add_argument("--read", type=_count, default=2000, metavar="N", help="samples of a split that are read (2000)")
    stats.add_argument("--read-all", action="store_true", help="read every sample")
    page = _corpus(data, "report", "one page: statistics, histograms, codebook usage, and samples to listen to")
    page.add_argument("--html", metavar="FILE", help="where to; report.html in the corpus's folder unless set")
    page.add_argument("--filter", metavar="EXPRESSION", help="show what each clause of it drops; as mixture filters")
    page.add_argument("--read", type=_count, default=2000, metavar="N", help="samples of a split that are read (2000)")
    measure = _corpus(data, "measure", "measure a corpus that exists: columns beside its shards, for filters; resumes")
    measure.add_argument("--measures", required=True, metavar="NAME,...", help="such as dnsmos,transcript,duplicates")
    measure.add_argument("--again", action="store_true", help="also where a shard has the columns already")
    measure.add_argument("--workers", type=_count, metavar="N", help="processes; one a core unless set")
    duplicates = _corpus(
        data, "duplicates", "find copies by sound and by text: columns duplicate_audio, duplicate_text"
    )
    duplicates.add_argument("--workers", type=_count, metavar="N", help="processes; one a core unless set")
    funnel = _corpus(data, "funnel", "what each clause of a filter takes away, over all and by source and language")
    funnel.add_argument("--filter", required=True, metavar="CONDITION", help="such as 'duration < 30 and wer < 0.2'")
    funnel.add_argument("--split", default="train", choices=("train", "valid"))
    funnel.add_argument("--html", metavar="FILE", help="write the table as a fragment of a page too")
    verify = _corpus(data, "verify", "whether manifest, indexes, tars and every sample are as they should be")
    verify.add_argument("--quick", action="store_true", help="checksums and indexes only")
    verify.add_argument("--workers", type=_count, metavar="N", help="processes; one a core unless set")

    checkpoint = _group(commands, "checkpoint", "look into, check and convert checkpoints")
    for name, help_text in (("inspect", "what a checkpoint holds"), ("verify", "whether its files are all there")):
        command = _command(checkpoint, name, help_text, f"checkpoint_{name}")
        command.add_argument("folder", help="a checkpoint, or a run folder (its newest one)")
    _configured(checkpoint, "import", "the backbone's weights into a native checkpoint", "checkpoint_import")
    export = _command(checkpoint, "export", "a native checkpoint into a Hugging Face folder", "checkpoint_export")
    export.add_argument("run_folder", help="a run folder; its newest checkpoint is exported to export/hf in it")

    _configured(commands, "evaluate", "validation losses of a stage's newest checkpoint")
    report = _command(commands, "report", "write report.html of a run", "report")
    report.add_argument("run_folder", help="a run folder, such as runs/quickstart")
    return parser


def _group(commands: argparse._SubParsersAction, name: str, help_text: str) -> argparse._SubParsersAction:
    parser = commands.add_parser(name, help=help_text, description=help_text)
    return parser.add_subparsers(metavar="<command>", required=True)


def _command(commands: argparse._SubParsersAction, name: str, help_text: str, function: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help_text, description=help_text)
    module = "data_commands" if function.startswith("data_") else "commands"
    parser.set_defaults(module=module, function=function)
    return parser


def _configured(
    commands: argparse._SubParsersAction, name: str, help_text: str, function: str | None = None
) -> argparse.ArgumentParser:
    parser = _command(commands, name, help_text, function or name)
    parser.add_argument("settings", nargs="*", metavar="key=value", help=OVERRIDES)
    return parser


def _count(word: str) -> int:
    """A whole number above 0."""
    if not word.isdecimal() or not int(word):
        raise argparse.ArgumentTypeError(f"{word} is not a number above 0")
    return int(word)


def _corpus(commands: argparse._SubParsersAction, name: str, help_text: str) -> argparse.ArgumentParser:
    parser = _command(commands, name, help_text, f"data_{name}")
    parser.add_argument("corpus", nargs="+", metavar="FOLDER|key=value", help=f"a corpus folder, or {OVERRIDES}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
