"""Validation samples of the corpus, to look at and listen to."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.corpus import Corpus
from data_pipeline.shards import DamagedSample, ShardReader
from data_pipeline.utterance import Utterance, Word
from runtime.exits import BadInput
from train.report.spectrogram import code_strip_png, spectrogram_png

MOST_SAMPLES = 6
MOST_AUDIO_BYTES = 2_400_000  # of all players together, before base64
LONGEST_SECONDS = 20.0


@dataclass(frozen=True)
class Strip:
    """The codes of one codebook, as numbers and as a picture. `seconds` is how much speech they stand for."""

    name: str
    rate: float
    seconds: float
    codes: list[int]
    image: str


@dataclass(frozen=True)
class Listening:
    """One sample as the page shows it; `audio` and the images are data URIs."""

    key: str
    text: str
    source: str
    speaker: str
    seconds: float
    words: tuple[Word, ...]
    audio: str
    spectrogram: str
    strips: list[Strip]


@dataclass(frozen=True)
class Listenings:
    """Samples, or why there are none; `damaged` counts those that were chosen but could not be read."""

    samples: list[Listening]
    absence: str = ""
    damaged: int = 0


def listen_to(folder: Path | None) -> Listenings:
    """A few spoken samples of the corpus's validation split, spread evenly over it."""
    if folder is None:
        return Listenings([], "The run's results name no corpus.")
    try:
        corpus = Corpus.open(folder)
    except BadInput as error:
        return Listenings([], f"The corpus cannot be opened: {error}.")
    rates = {book.name: book.rate for book in corpus.vocabulary.codebooks}
    candidates, damaged = _with_audio(corpus)
    if not candidates:
        return Listenings([], f"No validation sample of {corpus.name} has its audio beside the codes.", damaged)
    samples: list[Listening] = []
    budget = MOST_AUDIO_BYTES
    for shard, ordinal in candidates:
        try:
            with ShardReader(shard) as reader:
                utterance, audio = reader.read(ordinal), reader.read_audio(ordinal)
            if audio is None or len(audio) > budget:
                continue
            samples.append(_listening(utterance, audio, rates))
            budget -= len(audio)
        except DamagedSample:
            damaged += 1
    return Listenings(samples, "" if samples else "No validation sample could be read.", damaged)


def _with_audio(corpus: Corpus) -> tuple[list[tuple[Path, int]], int]:
    """At most MOST_SAMPLES (shard, ordinal) of samples with audio, and how many shards could not be opened."""
    found: list[tuple[Path, int]] = []
    damaged = 0
    for shard in corpus.shards("valid"):
        try:
            with ShardReader(shard) as reader:
                index = reader.index
                usable = (index.audio_size > 0) & (index.duration > 0) & (index.duration <= LONGEST_SECONDS)
                found += [(shard, int(ordinal)) for ordinal in np.flatnonzero(usable)]
        except (DamagedSample, BadInput):
            damaged += 1
    if len(found) > MOST_SAMPLES:
        found = [found[round(at)] for at in np.linspace(0, len(found) - 1, MOST_SAMPLES)]
    return found, damaged


def _listening(utterance: Utterance, audio: bytes, rates: dict[str, float]) -> Listening:
    import soundfile

    try:
        wave, rate = soundfile.read(io.BytesIO(audio), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise DamagedSample("audio", utterance.key) from error
    if not len(wave):
        raise DamagedSample("audio", utterance.key)
    return Listening(
        key=utterance.key,
        text=utterance.text,
        source=utterance.source,
        speaker=utterance.speaker,
        seconds=len(wave) / rate,
        words=utterance.words,
        audio=_data_uri("audio/flac", audio),
        spectrogram=_data_uri("image/png", spectrogram_png(wave.mean(axis=1), rate)),
        strips=[
            _strip(name if len(codes) == 1 else f"{name} {level}", rates[name], row)
            for name, codes in utterance.codes.items()
            if name in rates
            for level, row in enumerate(codes)
            if len(row)
        ],
    )


def _strip(name: str, rate: float, codes: np.ndarray) -> Strip:
    return Strip(name, rate, len(codes) / rate, codes.tolist(), _data_uri("image/png", code_strip_png(codes)))


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
