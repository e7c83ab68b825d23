"""One process of a stage of kind generate: `python -m train.generation <resolved config.yaml>`.

Ranks and array tasks share the work by its files (`sharing`); the first rank waits for all of it and declares it whole.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from configs.checks import check
from configs.schema import Config, InferenceKind, Made
from data_pipeline import answers
from data_pipeline.build import corpus_folder
from data_pipeline.corpus import Corpus, write_manifest
from data_pipeline.shards import replace_atomically
from data_pipeline.sources.text import find_source
from data_pipeline.vocabulary import Vocabulary
from runtime import startup
from runtime.exits import BadInput, leave
from runtime.log_lines import stamp_output
from runtime.run_files import MADE, RESULTS_FILE
from runtime.signals import StopFlag
from runtime.threads import use_threads
from train.generation.hearing import Hearing, columns_of, funnel_of, hearing_of
from train.generation.sharing import share_out
from train.generation.teacher import described, export_of
from train.inference.engine import has_engine
from train.stage import before_megatron, run_rank

MADE_FROM = "made_from.json"
# Of `generation`. What is heard by is content by itself, wherever its run folder lies.
_NOT_CONTENT = ("device", "batch", "decoder", "vocoder", "measures", "funnel")


class _Job(NamedTuple):
    """share: this process's part of the work, which returns when all of it is done; finish: declares it whole, and says
    what results.json has to tell."""

    share: Callable[[], None]
    finish: Callable[[], dict[str, Any]]


def generate(config: Config, stop: StopFlag) -> None:
    """This process's share of the stage."""
    began, rank = time.monotonic(), int(os.environ.get("RANK", "0"))
    check(config)
    if not has_engine(config.inference, rank):
        return
    export, corpus = export_of(config), Corpus.open(corpus_folder(config))
    made_by, hearing = described(config, export), hearing_of(config)
    funnel_of(config)  # before anything is said
    folder = Path(config.run.folder) / MADE
    folder.mkdir(parents=True, exist_ok=True)
    _agree(folder, config, corpus, made_by, hearing)
    if config.generation.makes is Made.speech:
        job = _speech(config, corpus, export, folder, made_by, stop, hearing)
    else:
        job = _answers(config, corpus, export, folder, made_by, stop)
    job.share()
    if rank == 0:
        results = {"status": "finished", "made": config.generation.makes.value, **job.finish()}
        results |= {"made_by": made_by, "wall_seconds": time.monotonic() - began}
        replace_atomically(Path(config.run.folder) / RESULTS_FILE, json.dumps(results, indent=2).encode())


def _agree(folder: Path, config: Config, corpus: Corpus, made_by: dict[str, Any], hearing: Hearing | None) -> None:
    """Raise BadInput where `folder` holds pieces that were made of something else."""
    options = {name: value for name, value in asdict(config.generation).items() if name not in _NOT_CONTENT}
    told = {
        "generation": options,
        "distillation": {"temperature": config.distillation.temperature},
        "mixture": asdict(config.mixture),
        "seed": config.train.seed,
        "corpus": corpus.content_hash,
        "made_by": made_by,
        "hearing": None if hearing is None else hearing.identity(),
    }
    if config.generation.makes is Made.speech:
        told["texts"] = find_source(config.generation.texts).identity()
    wanted = json.loads(json.dumps(told, default=lambda value: value.value))
    file = folder / MADE_FROM
    if file.is_file():
        held = json.loads(file.read_text(encoding="utf-8"))
        changed = [key for key in wanted if held.get(key) != wanted[key]]
        if changed:
            raise BadInput(f"{folder} holds what was made with another {', '.join(changed)}; give another run.name")
    else:
        replace_atomically(file, json.dumps(wanted, indent=2).encode())


def _speech(
    config: Config,
    corpus: Corpus,
    export: Path,
    folder: Path,
    made_by: dict[str, Any],
    stop: StopFlag,
    hearing: Hearing | None,
) -> _Job:
    from data_pipeline.drawing import Sampling
    from train.generation.sampling import stage_speaker
    from train.generation.speech import Recital, done_file, script_of
    from train.generation.telling import told_of

    options = config.generation
    sampling = Sampling(
        options.temperature, options.top_p, window=options.repetition_window, share=options.repetition_share
    )
    script = script_of(config, corpus)
    speaker = stage_speaker(config, export, sampling)
    recital = Recital(config, script, speaker, folder, stop, hearing)

    def finish() -> dict[str, Any]:
        entries: dict[str, list[dict[str, Any]]] = {}
        for file in script.shards:
            entry = json.loads(done_file(folder, file).read_text(encoding="utf-8"))
            entries.setdefault(file.split("/")[0], []).append(entry)
        generated = {"made_by": made_by, "codes_of": corpus.codecs, "prompts": corpus.content_hash}
        if hearing is not None:
            generated["heard"] = hearing.identity()
        made = write_manifest(
            folder,
            name=f"{config.corpus.name}-{config.stage.name}",
            vocabulary=speaker.vocabulary,
            codecs={"generated": generated},
            entries=entries,
        )
        shards = [folder / file for file in script.shards]
        told = told_of(shards, columns_of(config), funnel_of(config))
        return {"corpus": str(folder), "corpus_hash": made.content_hash, "totals": made.totals, **told}

    return _Job(partial(share_out, folder, list(script.shards), recital.is_done, recital.write, stop), finish)


def _answers(
    config: Config, corpus: Corpus, export: Path, folder: Path, made_by: dict[str, Any], stop: StopFlag
) -> _Job:
    from train.generation.asking import Inquiry, OneDevice

    inquiry = Inquiry(config, corpus, Vocabulary.load(export), folder, stop)

    def share() -> None:
        if config.inference.engine is InferenceKind.megatron:
            from train.generation.spread import ask

            ask(config, export, inquiry, stop)
        else:
            inquiry.ask(OneDevice.load(config, export))

    def finish() -> dict[str, Any]:
        answers.write_manifest(folder, {**inquiry.described(), "made_by": made_by})
        return {"corpus": str(corpus.folder), "corpus_hash": corpus.content_hash, "files": len(inquiry.pieces)}

    return _Job(share, finish)


def _start(file: Path) -> Config:
    """The config, with torch on the threads and the GPU that this rank was given; a process group chooses its own."""
    from configs.compose import load_config

    startup.begin_with_process(again=False)
    config = load_config(file)
    if config.inference.engine is InferenceKind.megatron:
        before_megatron(config)
        return config
    use_threads()
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return config


def main(arguments: list[str]) -> int:
    """Do this process's share of the stage that the config file in `arguments` describes. Returns the exit code."""
    return run_rank(arguments, generate, start=_start)


if __name__ == "__main__":
    stamp_output()
    leave(main(sys.argv[1:]))
