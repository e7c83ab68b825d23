"""What `megaphone synthesize` and `megaphone chat` share: prompts out of sound files, answers into sound files."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from configs.schema import Config
from data_pipeline.build import codec_of
from data_pipeline.sources.speech.conversations import ROLES
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput
from train.generation.transcription import heard_in

if TYPE_CHECKING:
    from train.decoder.codes import CodesDecoder

CODES, SOUND = ".npz", ".wav"


def turns_of(options: Namespace, config: Config) -> list[Utterance]:
    """The conversation that the command line gives: the turns of `--conversation`, and a question as sound or text.

    Raises BadInput where there is no question, or the conversation is no list of messages.
    """
    turns = [] if options.conversation is None else _written_turns(options.conversation, config)
    if bool(options.sound) + bool(options.text) > 1 or not (turns or options.sound or options.text):
        raise BadInput("give one question: a sound file, --text, or --conversation whose last turn is a human's")
    if options.text:
        turns.append(_turn(len(turns), "human", options.text))
    if options.sound:
        turns += _spoken(len(turns), "human", "", options.sound, config)
    return turns


def _written_turns(file: str, config: Config) -> list[Utterance]:
    """Turns of a JSON file `{"messages": [{"role", "text", "audio"}]}`, as `conversations` sources have a line of."""
    try:
        messages = json.loads(Path(file).read_text(encoding="utf-8"))["messages"]
        found = [(str(one["role"]), str(one.get("text", "")), str(one.get("audio", ""))) for one in messages]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"--conversation {file}: no JSON object with messages, each with a role: {error!r}") from error
    turns: list[Utterance] = []
    for role, text, audio in found:
        if role not in ROLES:
            raise BadInput(f"--conversation {file}: no such role {role}; there are {', '.join(ROLES)}")
        if audio:
            turns += _spoken(len(turns), ROLES[role], text, str(Path(file).parent / audio), config)
        else:
            turns.append(_turn(len(turns), ROLES[role], text))
    return turns


def _turn(number: int, role: str, text: str) -> Utterance:
    return Utterance(key=f"{number:03d}", text=text, document="talk", role=role)


def _spoken(number: int, role: str, text: str, sound: str, config: Config) -> list[Utterance]:
    pieces = heard_in(Path(sound), codec_of(config), config)
    texts = [text, *([""] * (len(pieces) - 1))]
    return [
        replace(piece, key=f"{number:03d}-{part}", text=said, document="talk", role=role)
        for part, (piece, said) in enumerate(zip(pieces, texts, strict=True))
    ]


def voice_of(options: Namespace, config: Config) -> Utterance | None:
    """The utterance that `--prompt-wav` and `--prompt-text` are. Raises BadInput for one without the other, and for a
    file that is too long for a prompt."""
    if bool(options.prompt_wav) != bool(options.prompt_text):
        raise BadInput("--prompt-wav and --prompt-text go together: what is heard, and what is said in it")
    if not options.prompt_wav:
        return None
    pieces = heard_in(Path(options.prompt_wav), codec_of(config), config)
    if len(pieces) != 1:
        raise BadInput(
            f"{options.prompt_wav} is longer than {config.corpus.cut.longest:g} s; a prompt is one utterance"
        )
    return replace(pieces[0], text=options.prompt_text)


@dataclass(frozen=True)
class Mouth:
    """Writes what a model says: as sound where a decoder is given, else as codes."""

    vocabulary: Vocabulary
    decoder: CodesDecoder | None
    suffix: str

    @classmethod
    def of(cls, options: Namespace, vocabulary: Vocabulary) -> Mouth:
        """Raises BadInput where the decoder was trained on another vocabulary."""
        if options.decoder is None:
            return cls(vocabulary, None, CODES)
        from train.decoder.codes import CodesDecoder

        decoder = CodesDecoder.of_model(
            vocabulary, options.decoder, options.vocoder, named=options.decoder, device=options.device
        )
        return cls(vocabulary, decoder, SOUND)

    def write(self, ids: np.ndarray, file: Path) -> Path:
        """Write ids in whole groups to `file`, whose suffix is made the right one; returns where they are."""
        from data_pipeline.layouts.groups import ungroup

        codes = ungroup(ids, self.vocabulary)
        file = file.with_suffix(self.suffix)
        file.parent.mkdir(parents=True, exist_ok=True)
        if self.decoder is None:
            np.savez(file, **codes)  # type: ignore[arg-type]
            return file
        from data_pipeline.audio import encode_wav

        file.write_bytes(encode_wav(*self.decoder.decode(codes)))
        return file
