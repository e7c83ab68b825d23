"""The `megaphone` command. This module stays light: everything a command needs is imported when it runs."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from runtime import startup
from runtime.exits import FAILED, BadInput, StoppedEarly
from runtime.signals import stoppable

OVERRIDES = "settings as key=value in Hydra's grammar, such as recipe=quickstart scale=tiny train.steps=50"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (see runtime.exits)."""
    if arguments is None:  # this process is the command
        startup.begin_with_process()
        startup.passed("interpreter")
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
        "2 bad configuration or input; 77 preflight names sick nodes; 1 anything else.",
    )
    commands = parser.add_subparsers(title="commands", metavar="<command>", required=True)

    run = _configured(commands, "run", "all stages of a recipe in order, resuming; then export and report")
    train = _configured(commands, "train", "one stage: joins the process group of torchrun or srun, else starts ranks")
    for command in (run, train):
        command.add_argument("--cfg", action="store_true", help="print the resolved config and exit")
    train.add_argument("--folder", metavar="FOLDER", help="the stage of a run folder, with the settings saved in it")
    look = _configured(commands, "preflight", "look at a job's nodes before a stage, and name the slow or sick one")
    look.add_argument("--folder", metavar="FOLDER", help="for the stage of a run folder, with the settings saved in it")
    for name, help_text in (
        ("finish", "export a trained stage, check the export, write its report; what is done is not done again"),
        ("status", "stages, steps, last figures and Slurm jobs of a run"),
        ("cancel", "take a run's Slurm jobs out of the queue; those that run save first"),
    ):
        command = _command(commands, name, help_text, name)
        command.add_argument("run_folder", help="a run folder, such as runs/quickstart")

    plan = _configured(commands, "plan", "topologies of a stage on so many GPUs, ranked by predicted step time")
    plan.set_defaults(module="planner.command")
    plan.add_argument("--gpus", type=_count, required=True, metavar="N", help="in all")
    plan.add_argument("--gpu", required=True, metavar="KIND", help="such as h100, h800 or a100")
    plan.add_argument("--top", type=_count, default=10, metavar="N", help="show so many (10)")
    plan.add_argument("--headroom", type=float, default=0.1, metavar="X", help="share of memory to keep free (0.1)")
    for option, help_text in (
        ("--encoder", "of sound, on the first stage: layers, hidden, ffn, positions, clips, trained"),
        ("--heads", "of codebooks, on the last stage: layers, hidden, ffn, codebooks, rows, share"),
    ):
        plan.add_argument(option, metavar="key=value,...", help=help_text)
    plan.add_argument("--explain", action="store_true", help="where the first one's step goes")
    plan.add_argument("--json", action="store_true", help="all of them as JSON")

    simulation = _configured(commands, "simulate", "a stage's pipeline, played and drawn, on several numbers of GPUs")
    simulation.set_defaults(module="planner.simulation", function="simulate_stage")
    simulation.add_argument(
        "--gpus", type=_count, nargs="+", required=True, metavar="N", help="in all; the global batch stays the same"
    )
    simulation.add_argument("--gpu", required=True, metavar="KIND", help="such as h100, h800 or a100")
    for option, value, help_text in (
        ("--failures", 1.0, "of the job, in 1,000 days of one GPU (1; Llama 3 saw 0.5: 2407.21783, section 3.3.4)"),
        ("--restart", 600.0, "seconds from a failure until the job trains again (600)"),
        ("--storage", 1.0, "GB/s that a node writes a checkpoint with (1)"),
        ("--stall", 0.05, "share of a save that a background one keeps training from (0.05)"),
    ):
        simulation.add_argument(option, type=float, default=value, metavar="X", help=help_text)
    simulation.add_argument("--svg", metavar="FILE", help="draw the steps, a row a pipeline rank")
    simulation.add_argument("--json", action="store_true", help="print all of it as JSON")

    logs = _command(commands, "logs", "what all ranks have said, by time, filtered by rank, node or level", "logs")
    logs.add_argument("run_folder", help="a run folder, such as runs/quickstart")
    logs.add_argument("--stage", metavar="NAME", help="of a run of several stages; all unless set")
    logs.add_argument("--rank", nargs="+", metavar="N", help="ranks, or ranges such as 8-15")
    logs.add_argument("--node", nargs="+", metavar="NAME", help="nodes by name")
    logs.add_argument("--level", default="debug", choices=("debug", "info", "warning", "error"), help="at least this")
    logs.add_argument("--since", metavar="WHEN", help="90s, 10m, 2h or 3d ago, or a time such as 2026-11-30T04:31")
    logs.add_argument("--follow", action="store_true", help="go on with what is written, until Ctrl-C")

    data = _group(commands, "data", "build a corpus, look into it, measure and check it")
    build = _configured(
        data, "build", "text, speech and codes into shards, or a task's share of them; resumes", "data_build"
    )
    build.add_argument("--features", action="store_true", help="only a task's share of what codebooks are learnt from")
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

    _checkpoint_tools(checkpoint)
    _checkpoint_conversion(checkpoint)
    _checkpoint_deepspeed(checkpoint)

    dry = _configured(commands, "dryrun", "ranks of any topology built here without data, and the memory of each")
    dry.set_defaults(module="dryrun")
    dry.add_argument("--ranks", metavar="N,...", help="these ranks; all that differ in what they hold unless set")
    dry.add_argument("--gpus", type=_count, metavar="N", help="of the whole job; as the settings have it unless set")
    dry.add_argument("--memory", type=float, metavar="GB", help="of one GPU: refuse what needs more")
    dry.add_argument("--no-step", action="store_true", help="build ranks alone, without a training step")
    dry.add_argument("--cpu", action="store_true", help="with the kernels of a CPU instead of a GPU's")
    dry.add_argument("--json", action="store_true", help="all of it as JSON")

    _configured(commands, "evaluate", "validation losses of a stage's newest checkpoint")
    transcribe = _command(
        commands, "transcribe", "what a trained model hears in sound files or in a corpus", "generate_text"
    )
    transcribe.add_argument("run_folder", help="a run folder with an export, such as runs/quickstart")
    transcribe.add_argument("sounds", nargs="*", metavar="FILE", help="sound files; long ones are cut at pauses")
    transcribe.add_argument("--corpus", metavar="FOLDER", help="instead of files: a corpus of the same vocabulary")
    transcribe.add_argument("--split", default="valid", choices=("train", "valid"))
    transcribe.add_argument("--limit", type=_count, default=200, metavar="N", help="utterances of the corpus (200)")
    transcribe.add_argument("--batch", type=_count, default=8, metavar="N", help="utterances together (8)")
    transcribe.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:<n>; cuda if there unless set")
    transcribe.add_argument("--bf16", action="store_true", help="compute in bfloat16, else in fp32")
    transcribe.add_argument("--json", metavar="FILE", help="write texts and error rates to a file too")
    _speaking(commands)
    report = _command(commands, "report", "write report.html of a run", "report")
    report.add_argument("run_folder", help="a run folder, such as runs/quickstart")
    return parser


def _speaking(commands: argparse._SubParsersAction) -> None:
    """Commands by which a trained model speaks."""
    synthesize = _command(commands, "synthesize", "a trained model says texts, in a prompt's voice", "generate_speech")
    synthesize.add_argument("--texts", metavar="FILE", help="a text a line, each into a file of its own")
    synthesize.add_argument("--prompt-wav", metavar="FILE", help="the voice to go on in (models of tts_dialogue)")
    synthesize.add_argument("--prompt-text", metavar="TEXT", help="what is said in it")
    synthesize.add_argument("--speaker", default="", metavar="NAME", help="a speaker that the model was taught")
    synthesize.add_argument("--style", default="", metavar="NAME", help="a style that the model was taught")
    synthesize.add_argument("--batch", type=_count, default=8, metavar="N", help="texts together (8)")
    synthesize.add_argument("--text", action="append", default=[], metavar="TEXT", help="what to say; may be repeated")
    chat = _command(commands, "chat", "a trained model answers a question: a file in, a file out", "generate_answer")
    chat.add_argument("--wav", dest="sound", metavar="FILE", help="the question as a sound file")
    chat.add_argument("--text", metavar="TEXT", help="the question in writing")
    chat.add_argument("--conversation", metavar="FILE", help="JSON with the messages before it, as corpora have them")
    chat.add_argument("--form", choices=("TQTA", "AQTA", "TAQTA", "AQAA"), help="one the model learnt; else its first")
    for command in (synthesize, chat):
        command.add_argument("run_folder", help="a run folder with an export, such as runs/step_audio/sft_tts")
        command.add_argument("--out", default="said", metavar="PATH", help="where sound (or codes, .npz) goes (said)")
        command.add_argument("--decoder", metavar="FOLDER", help="run of a decoder's flow; else codes are written")
        command.add_argument("--vocoder", metavar="FOLDER", help="run of a decoder's vocoder; else Griffin-Lim")
        command.add_argument("--longest", type=float, metavar="SECONDS", help="cut speech there")
        command.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn (0)")
        command.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:<n>; cuda if there unless set")
        command.add_argument("--bf16", action="store_true", help="compute in bfloat16, else in fp32")


def _group(commands: argparse._SubParsersAction, name: str, help_text: str) -> argparse._SubParsersAction:
    parser = commands.add_parser(name, help=help_text, description=help_text)
    return parser.add_subparsers(metavar="<command>", required=True)


def _command(commands: argparse._SubParsersAction, name: str, help_text: str, function: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help_text, description=help_text)
    group = function.partition("_")[0]
    parser.set_defaults(
        module=f"{group}_commands" if group in ("data", "checkpoint", "generate") else "commands", function=function
    )
    return parser


_NATIVE = "a native checkpoint, or a run folder (its newest one)"


def _checkpoint_tools(checkpoint: argparse._SubParsersAction) -> None:
    """Commands that make checkpoints of checkpoints; none replaces what is there."""
    diff = _tool(checkpoint, "diff", "how two checkpoints differ; exit code 0: not at all, 1: they do", out=False)
    diff.add_argument("a", metavar="A", help=f"{_NATIVE}, or any format that is read")
    diff.add_argument("b", metavar="B", help="another one")
    diff.add_argument("--match", action="append", metavar="PATTERN", help="tensors by name, as in 'model.decoder.*'")
    diff.add_argument("--weights-only", action="store_true", help="leave optimiser state out")
    diff.add_argument("--within", type=float, default=0.0, metavar="X", help="equal up to this difference (0: bits)")
    diff.add_argument("--all", action="store_true", help="show equal tensors too")
    average = _tool(checkpoint, "average", "the weighted mean of checkpoints' weights")
    average.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="two or more; or a run folder: all of it")
    average.add_argument("--last", type=_count, metavar="N", help="the newest N of them alone")
    how = average.add_mutually_exclusive_group()
    how.add_argument("--weights", metavar="5:5:1", help="one for each, in order; all alike unless set")
    how.add_argument("--ema", type=float, metavar="DECAY", help="exponential moving average, in order")
    extract = _tool(checkpoint, "extract", "some tensors, as a *.safetensors file or a native checkpoint")
    extract.add_argument("folder", help=_NATIVE)
    extract.add_argument(
        "--match", action="append", metavar="PATTERN", help="parameters, as in 'decoder.layers.<0-3>.*'"
    )
    extract.add_argument("--lora", action="store_true", help="the low-rank factors alone")
    merge = _tool(checkpoint, "merge", "low-rank updates merged into the weights they update", dtype=False)
    merge.add_argument("folder", help=_NATIVE)
    one = _tool(checkpoint, "consolidate", "a native checkpoint in one file: *.safetensors, or native still")
    one.add_argument("folder", help=_NATIVE)
    one.add_argument("--optimizer", action="store_true", help="with the optimiser's state")
    shards = _tool(checkpoint, "reshard", "its files laid out for another topology, one a rank; bits stay", dtype=False)
    shards.add_argument("folder", help=_NATIVE)
    _topology(shards)
    shards.add_argument("--drop-optimizer", action="store_true", help="weights alone")
    vocab = _tool(checkpoint, "vocab", "another vocabulary: grow, cut or pad rows, or move them to a corpus's ids")
    vocab.add_argument("folder", help=_NATIVE)
    size = vocab.add_mutually_exclusive_group()
    size.add_argument("--rows", type=_count, metavar="N", help="so many rows")
    size.add_argument("--like", metavar="FOLDER", help="the vocabulary of this corpus or checkpoint")
    vocab.add_argument(
        "--multiple", type=_count, metavar="N", help="of rows, where they are padded; as it was unless set"
    )
    vocab.add_argument(
        "--tensor", type=_count, default=1, metavar="N", help="tensor-parallel size that divides rows too"
    )
    vocab.add_argument("--used", type=_count, metavar="N", help="ids in use, where the checkpoint does not say")
    vocab.add_argument("--new-rows", default="covariance", choices=("covariance", "mean"), help="how new rows begin")
    vocab.add_argument("--copy", metavar="ID,...", help="new rows copy these instead, in turns")
    vocab.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn (0)")
    vocab.add_argument("--optimizer", action="store_true", help="keep its state; moments of new rows are 0")


def _checkpoint_conversion(checkpoint: argparse._SubParsersAction) -> None:
    help_text = "a checkpoint of any format into another format or for another topology; resumes"
    convert = _command(checkpoint, "convert", help_text, "checkpoint_convert")
    convert.add_argument("source", metavar="SOURCE", help="a folder or file; its format is found")
    convert.add_argument("destination", metavar="DESTINATION", help="where to; nothing may be there")
    convert.add_argument("settings", nargs="*", metavar="key=value", help="backbone=NAME, of a source that has no name")
    formats = ("native", "huggingface", "safetensors", "universal")
    convert.add_argument(
        "--to",
        choices=formats,
        help="native, or Hugging Face's of a native one, unless set; safetensors: its tensors, nothing beside them",
    )
    _topology(convert)
    convert.add_argument("--dtype", choices=("fp32", "bf16"), help="of every tensor; as they are unless set")
    convert.add_argument("--rows", type=_count, metavar="N", help="of the vocabulary; as they are unless set")
    convert.add_argument("--used", type=_count, metavar="N", help="rows to keep; those in use unless set")
    convert.add_argument("--new-rows", default="covariance", choices=("covariance", "mean"), help="how new rows begin")
    convert.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn (0)")
    convert.add_argument(
        "--shard-gigabytes", type=float, default=5.0, metavar="X", help="a safetensors file, at most (5)"
    )
    convert.add_argument("--workers", type=_count, metavar="N", help="processes; one a core unless set")
    convert.add_argument("--share", metavar="K/N", help="do part K of N, K from 0 on; the last one to end finishes")
    convert.add_argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="read the result again, take it apart and compare every tensor's hash with the source's: done unless left "
        "out, which the card then says",
    )
    convert.add_argument("--logits", action="store_true", help="compare logits with transformers', in fp32, in memory")
    convert.add_argument("--allow-nan", action="store_true", help="convert values that are NaN or infinite too")
    plan = _configured(
        checkpoint, "plan", "every file of a native checkpoint, from the config alone", "checkpoint_plan"
    )
    plan.add_argument("--rows", type=_count, metavar="N", required=True, help="of the vocabulary, padding included")
    plan.add_argument("--dtype", default="bf16", choices=("fp32", "bf16"), help="of every tensor (bf16)")
    plan.add_argument("--full", action="store_true", help="with the name, place and shape of every piece")
    plan.add_argument("--json", action="store_true", help="all of it as JSON")


def _topology(command: argparse.ArgumentParser) -> None:
    """For which ranks native files are cut."""
    command.add_argument("--tensor", type=_count, default=1, metavar="N", help="tensor-parallel size (1)")
    command.add_argument("--pipeline", type=_count, default=1, metavar="N", help="pipeline-parallel size (1)")
    command.add_argument("--virtual-pipeline", type=_count, metavar="N", help="model chunks a pipeline rank")
    command.add_argument(
        "--pipeline-layout", metavar="LAYOUT", help="as parallel.pipeline_layout; layers evenly unless set"
    )


def _checkpoint_deepspeed(checkpoint: argparse._SubParsersAction) -> None:
    """Training states, moments included, between DeepSpeed and native checkpoints."""
    to = _tool(checkpoint, "to-universal", "a native checkpoint as DeepSpeed's universal one, moments too", dtype=False)
    to.add_argument("folder", help=_NATIVE)
    of = _tool(checkpoint, "from-deepspeed", "a ZeRO, pipeline or universal folder as a native one", dtype=False)
    of.add_argument("folder", help="DeepSpeed's folder, of one step or of several (its newest one)")
    of.add_argument(
        "--like", metavar="NATIVE", help="take vocabulary and config from this checkpoint of the same model"
    )


def _tool(
    commands: argparse._SubParsersAction, name: str, help_text: str, *, out: bool = True, dtype: bool = True
) -> argparse.ArgumentParser:
    parser = _command(commands, name, help_text, f"checkpoint_{name.replace('-', '_')}")
    if out:
        parser.add_argument("--out", required=True, metavar="PLACE", help="where to; nothing may be there")
        if dtype:
            parser.add_argument("--dtype", choices=("fp32", "bf16"), help="of parameters; as they are unless set")
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
