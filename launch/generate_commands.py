"""What each command does that lets a trained model speak or write."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.schema import Config
from launch.runfolder import load_run
from runtime.exits import DONE, BadInput
from runtime.run_files import EXPORT

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


def generate_speech(options: Namespace) -> int:
    """Speech of texts, a file each; in the voice of a prompt where one is given."""
    run = Path(options.run_folder)
    config = load_run(run)
    from launch.spoken_files import Mouth, voice_of
    from train.generation.sampling import exported_speaker
    from train.generation.speaking import Line, say, speaking_layout

    texts = [*options.text, *(_lines(options.texts) if options.texts else [])]
    if not texts:
        raise BadInput("give --text, or --texts with a file of lines")
    layout = speaking_layout(config.mixture, prompted=bool(options.prompt_wav))
    voice = voice_of(options, config)
    speaker = exported_speaker(run / EXPORT, device=options.device, bf16=options.bf16)
    mouth = Mouth.of(options, speaker.vocabulary)
    files = [Path(options.out)] if len(texts) == 1 else [Path(options.out) / f"{n:04d}" for n in range(len(texts))]
    for first in range(0, len(texts), options.batch):
        together = [Line(text, options.speaker, options.style) for text in texts[first : first + options.batch]]
        seeds = range(options.seed + first, options.seed + first + len(together))
        said = say(speaker, layout, together, seeds, voice=voice, longest=options.longest)
        for line, speech, file in zip(together, said, files[first:], strict=False):
            how = "" if speech.ended else ", cut there"
            print(f"{mouth.write(speech.ids, file)}\t{speech.seconds:.2f} s{how}\t{line.text}", flush=True)
    return DONE


def generate_answer(options: Namespace) -> int:
    """The next turn of a conversation: its text on the terminal, its sound in a file."""
    run = Path(options.run_folder)
    config = load_run(run)
    from launch.spoken_files import Mouth, turns_of
    from train.generation.conversing import Assistant, chat_layouts

    form = options.form or next(iter(sorted(chat_layouts(config.mixture))))
    assistant = Assistant(config.mixture, run / EXPORT, form, device=options.device, bf16=options.bf16)
    mouth = Mouth.of(options, assistant.vocabulary)
    answer = assistant.answer(turns_of(options, config), seed=options.seed, longest=options.longest)
    if answer.heard:
        print(f"heard   {answer.heard}")
    if answer.ids is None:
        print(answer.text)
    else:
        print(mouth.write(answer.ids, Path(options.out)))
    return DONE


def _lines(file: str) -> list[str]:
    try:
        return [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"--texts {file}: {error}") from error


def _of_files(transcriber: Transcriber, config: Config, sounds: list[str]) -> dict[str, Any]:
    from data_pipeline.build import codec_of
    from train.generation.transcription import heard_in

    codec = codec_of(config)
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
    rates = ", ".join(f"{name.upper()} {100 * rate:.1f} %" for name, rate in totals.items())
    print(f"{len(scored)} utterances: {rates}")
    return {"transcripts": [asdict(one) for one in scored], **totals}
