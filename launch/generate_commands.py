"""What each command does that lets a trained model speak or write."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.schema import Config
from launch.commands import EXPORT
from launch.runfolder import load_run
from runtime.exits import DONE, BadInput

if TYPE_CHECKING:
    from train.generation.transcription import Transcriber


def generate_text(options: Namespace) -> int:
    """Transcripts of sound files, a line each; of a corpus with the texts that were spoken and error rates."""
    if bool(options.sounds) == bool(options.corpus):
        raise BadInput("give sound files, or --corpus with a folder")
    run = Path(options.run_folder)
    config = load_run(run)
    from train.generation.transcription import Transcriber

    transcriber = Transcriber(config, run / EXPORT, device=options.device, bf16=options.bf16)
    found = _of_corpus(transcriber, options) if options.corpus else _of_files(transcriber, config, options.sounds)
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return DONE


def _of_files(transcriber: Transcriber, config: Config, sounds: list[str]) -> dict[str, Any]:
    from data_pipeline.build import corpus_folder
    from data_pipeline.codecs.registry import learns, open_codec
    from train.generation.transcription import heard_in

    codec = open_codec(config.codec, corpus_folder(config) if learns(config.codec) else None)
    found = []
    for sound in sounds:
        pieces = heard_in(Path(sound), codec, config)
        text = " ".join(filter(None, transcriber.transcribe(pieces)))
        print(f"{sound}\t{text}", flush=True)
        found.append({"file": sound, "seconds": sum(piece.duration for piece in pieces), "heard": text})
    return {"transcripts": found}


def _of_corpus(transcriber: Transcriber, options: Namespace) -> dict[str, Any]:
    from data_pipeline.corpus import Corpus
    from train.generation.transcription import error_totals, score, spoken_in

    corpus = Corpus.open(Path(options.corpus))
    if corpus.vocabulary != transcriber.vocabulary:
        raise BadInput(f"{options.corpus} has another vocabulary than the model: its codes are not the model's")
    utterances = spoken_in(corpus, options.split, options.limit)
    if not utterances:
        raise BadInput(f"{options.corpus} has no spoken utterance with a text in its {options.split} split")
    scored = []
    for one in score(transcriber, utterances, options.batch):
        print(f"{one.key}\n  said   {one.text}\n  heard  {one.heard}", flush=True)
        scored.append(one)
    totals = error_totals(scored)
    print(f"{len(scored)} utterances: WER {100 * totals['wer']:.1f} %, CER {100 * totals['cer']:.1f} %")
    return {"transcripts": [asdict(one) for one in scored], **totals}
