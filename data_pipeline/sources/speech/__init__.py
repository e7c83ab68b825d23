"""Where recorded speech comes from. The one registry of its kinds is here.

A kind is a function `(path, split, **options) -> Iterator[Recording]` that reads how a corpus is laid out and decodes
nothing. `path` is what the settings say, `split` the corpus's own word for a part of it, or None. Keyword-only
parameters are its options. Where the sound of a recording lies is a `Place` (places.py), so that one function decodes
for all kinds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import xxhash

from configs.schema import SpeechSourceConfig
from data_pipeline.decode import LONGEST_SECONDS, check_duration
from data_pipeline.packages import PACKAGE, package_folder
from data_pipeline.sources.address import is_url
from data_pipeline.sources.options import check_options
from data_pipeline.sources.recording import Recording, Sound, SpeechSource, UnreadableAudio
from data_pipeline.sources.speech.aishell import aishell
from data_pipeline.sources.speech.asterisk import asterisk
from data_pipeline.sources.speech.audio_folder import audio_folder
from data_pipeline.sources.speech.chatterbot import chatterbot
from data_pipeline.sources.speech.common_voice import common_voice
from data_pipeline.sources.speech.conversations import conversations
from data_pipeline.sources.speech.fisher import fisher
from data_pipeline.sources.speech.gigaspeech import gigaspeech
from data_pipeline.sources.speech.huggingface import huggingface
from data_pipeline.sources.speech.kaldi import kaldi
from data_pipeline.sources.speech.lhotse_cuts import lhotse_cuts
from data_pipeline.sources.speech.lhotse_shar import lhotse_shar
from data_pipeline.sources.speech.librispeech import librispeech
from data_pipeline.sources.speech.manifest import jsonl, tsv
from data_pipeline.sources.speech.places import Place
from data_pipeline.sources.speech.wenetspeech import wenetspeech
from runtime.exits import BadInput

NOT_STATED = "not stated"


@dataclass(frozen=True)
class Kind:
    """How to read one layout, and what is known of every corpus in it."""

    read: Callable[..., Iterator[Recording]]
    licence: str = NOT_STATED
    language: str = ""


KINDS = {
    "aishell": Kind(aishell, licence="Apache-2.0", language="zh"),
    "asterisk": Kind(asterisk, licence="CC-BY-SA-3.0"),
    "audio_folder": Kind(audio_folder),
    "chatterbot": Kind(chatterbot, licence="BSD-3-Clause"),
    "common_voice": Kind(common_voice, licence="CC0-1.0"),
    "conversations": Kind(conversations),
    "fisher": Kind(fisher, licence="LDC user agreement", language="en"),
    "gigaspeech": Kind(gigaspeech, licence="GigaSpeech terms (non-commercial research)", language="en"),
    "huggingface": Kind(huggingface),
    "jsonl": Kind(jsonl),
    "kaldi": Kind(kaldi),
    "lhotse_cuts": Kind(lhotse_cuts),
    "lhotse_shar": Kind(lhotse_shar),
    "librispeech": Kind(librispeech, licence="CC-BY-4.0", language="en"),
    "tsv": Kind(tsv),
    "wenetspeech": Kind(wenetspeech, licence="WenetSpeech terms (non-commercial research)", language="zh"),
}


def open_speech_source(config: SpeechSourceConfig) -> SpeechSource:
    """The source that `config` describes. Raises BadInput for an unknown kind or option, or a path not there."""
    if config.kind not in KINDS:
        raise BadInput(f"no such kind of speech source: {config.kind}; there are {', '.join(KINDS)}")
    kind = KINDS[config.kind]
    options = check_options(f"speech source {config.kind}", kind.read, config.options)
    path = _path(config.path)
    if not is_url(path) and not Path(path).exists():
        raise BadInput(f"speech source {config.kind}: {config.path} does not exist")
    return _Source(
        config=replace(config, path=path),
        read=kind.read,
        options=options,
        licence=config.licence or kind.licence,
        language=kind.language if config.language is None else config.language,
    )


def _path(written: str) -> str:
    """A path as a config gives it; `package:<name>/<folder>` is in an installed package."""
    if not written.startswith(PACKAGE):
        return written
    name, _, inside = written.removeprefix(PACKAGE).partition("/")
    return str(package_folder(name) / inside)


@dataclass(frozen=True)
class _Source:
    """A SpeechSource of any kind."""

    config: SpeechSourceConfig
    read: Callable[..., Iterator[Recording]]
    options: dict[str, Any]
    licence: str
    language: str

    def recordings(self) -> Iterator[Recording]:
        seen: set[int] = set()
        for recording in self.read(self.config.path, self.config.split, **self.options):
            digest = xxhash.xxh3_64_intdigest(recording.key.encode())
            if digest in seen:
                raise BadInput(f"{self.config.path}: two recordings are called {recording.key}")
            seen.add(digest)
            yield _with_language(recording, self.language)
        if not seen:
            part = f" in split {self.config.split}" if self.config.split else ""
            raise BadInput(f"speech source {self.config.kind}: {self.config.path} holds no recordings{part}")

    def sound(self, recording: Recording, start: float = 0.0, end: float | None = None) -> Sound:
        place: Place = recording.audio
        parts: list[Sound] = []
        seconds = 0.0
        for block in place.blocks(start, end, recording.duration):
            parts.append(block)
            seconds += block.duration
            if seconds > LONGEST_SECONDS:
                raise UnreadableAudio("too_long", place.name)
        if end is None:
            check_duration(start + seconds, recording.duration, place.name)
        return joined(parts)

    def blocks(self, recording: Recording) -> Iterator[Sound]:
        place: Place = recording.audio
        seconds = 0.0
        for block in place.blocks(0.0, None, recording.duration):
            seconds += block.duration
            yield block
        check_duration(seconds, recording.duration, place.name)

    def identity(self) -> str:
        digest = xxhash.xxh3_128(f"{self.config.split} {sorted(self.options.items())}".encode())
        sizes: dict[str, int] = {}
        for recording in self.recordings():
            file = recording.audio.file
            if file not in sizes:
                sizes[file] = _size(file)
            digest.update(f"{recording!r} {sizes[file]}\n".encode("utf-8", "surrogatepass"))
        return f"{self.config.kind} {digest.hexdigest()}"


def joined(parts: list[Sound]) -> Sound:
    """Sounds of one recording, one after the other."""
    import numpy as np

    if len(parts) == 1:
        return parts[0]
    return Sound(np.concatenate([part.samples for part in parts], axis=1), parts[0].rate)


def _with_language(recording: Recording, language: str) -> Recording:
    if not language or all(segment.language for segment in recording.segments):
        return recording
    filled = tuple(replace(s, language=s.language or language) for s in recording.segments)
    return replace(recording, segments=filled)


def _size(file: str) -> int:
    """Bytes of a local file, -1 for one that is missing or remote (a remote one counts by its address)."""
    try:
        return -1 if is_url(file) else os.stat(file).st_size
    except OSError:
        return -1


__all__ = ["KINDS", "NOT_STATED", "Kind", "joined", "open_speech_source"]
