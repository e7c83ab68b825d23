"""Samples of a corpus, to look at and listen to."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from data_pipeline.corpus import Corpus
from data_pipeline.looking.pages import number
from data_pipeline.looking.spectrogram import code_strip_png, spectrogram_png
from data_pipeline.shards import DamagedSample, ShardReader
from data_pipeline.utterance import Utterance, Word
from data_pipeline.vocabulary import Vocabulary

T = TypeVar("T")

MOST_SAMPLES = 6
MOST_AUDIO_BYTES = 2_400_000  # of all players together, before base64
LONGEST_SECONDS = 20.0
MOST_SHARDS = 32  # opened to choose samples from, spread evenly over the split


@dataclass(frozen=True)
class Strip:
    """The codes of one table of a codebook, as numbers and as a picture. `seconds`: how much speech they stand for."""

    name: str
    rate: float
    seconds: float
    codes: list[int]
    image: str


@dataclass(frozen=True)
class Shown:
    """One sample as a page shows it; `audio` and the images are data URIs, empty where the corpus holds no sound.
    `seconds` is 0 for text that was not spoken."""

    key: str
    text: str
    source: str
    speaker: str
    seconds: float
    words: tuple[Word, ...] = ()
    audio: str = ""
    spectrogram: str = ""
    strips: list[Strip] = field(default_factory=list)
    features: list[str] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Gallery:
    """Samples, or why there are none; `damaged` counts those that were chosen but could not be read."""

    samples: list[Shown]
    absence: str = ""
    damaged: int = 0

    def strip_data(self) -> list[list[dict[str, Any]]]:
        """The numbers behind the strips of every sample, for the page's script."""
        return [
            [{"name": strip.name, "rate": strip.rate, "codes": strip.codes} for strip in sample.strips]
            for sample in self.samples
        ]


def gallery(corpus: Corpus, split: str, most: int = MOST_SAMPLES) -> Gallery:
    """A few samples of a split, spread evenly over it: with sound where there are such, else with codes, else text."""
    chosen, kind, damaged = _choose(corpus, split, most)
    samples: list[Shown] = []
    budget = MOST_AUDIO_BYTES
    for shard, ordinal in chosen:
        try:
            with ShardReader(shard) as reader:
                utterance, audio = reader.read(ordinal), reader.read_audio(ordinal)
            if audio is not None and len(audio) > budget:
                continue
            samples.append(show(utterance, audio, corpus.vocabulary))
            budget -= len(audio or b"")
        except DamagedSample:
            damaged += 1
    if kind == "sound" and samples:
        return Gallery(samples, "", damaged)
    what = "Validation" if split == "valid" else "Training"
    silent = f"No {what.lower()} sample of {corpus.name} has its audio beside the codes."
    return Gallery(samples, silent if samples or not chosen else f"No {what.lower()} sample could be read.", damaged)


def show(utterance: Utterance, audio: bytes | None, vocabulary: Vocabulary) -> Shown:
    """`utterance` with the bytes of its flac file, if any. Raises DamagedSample (kind audio) where they are none."""
    rates = {book.name: book.rate for book in vocabulary.codebooks}
    strips = [
        _strip(name if len(codes) == 1 else f"{name} {row}", rates[name], table)
        for name, codes in utterance.codes.items()
        if name in rates
        for row, table in enumerate(codes)
        if len(table)
    ]
    seconds, sound, picture = max([utterance.duration, *(strip.seconds for strip in strips)]), "", ""
    if audio is not None:
        wave, rate = read_sound(audio, utterance.key)
        seconds = len(wave) / rate
        sound, picture = data_uri("audio/flac", audio), data_uri("image/png", spectrogram_png(wave, rate))
    return Shown(
        key=utterance.key,
        text=utterance.text,
        source=utterance.source,
        speaker=utterance.speaker,
        seconds=seconds,
        words=utterance.words,
        audio=sound,
        spectrogram=picture,
        strips=strips,
        features=[f"{name} features {len(rows)} × {rows.shape[1]}" for name, rows in utterance.features.items()],
        facts=facts(utterance),
    )


def facts(utterance: Utterance) -> list[tuple[str, str]]:
    """What is known of an utterance beside text and speaker, by name: labels, then what was measured."""
    told = [(name, getattr(utterance, name)) for name in ("language", "role", "licence", "recording")]
    if utterance.start:
        told.append(("start", f"{utterance.start:.2f} s"))
    if utterance.channel:
        told.append(("channel", str(utterance.channel)))
    measured = [(name, number(float(value))) for name, value in utterance.quality.items()]
    return [(name, value) for name, value in told if value] + measured


def read_sound(audio: bytes, key: str) -> tuple[np.ndarray, int]:
    """float32 [samples], channels averaged, and the rate of a flac file. Raises DamagedSample (kind audio)."""
    import soundfile

    try:
        wave, rate = soundfile.read(io.BytesIO(audio), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise DamagedSample("audio", key) from error
    if not len(wave):
        raise DamagedSample("audio", key)
    return wave.mean(axis=1), rate


def _choose(corpus: Corpus, split: str, most: int) -> tuple[list[tuple[Path, int]], str, int]:
    """At most `most` (shard, ordinal), what they have ("sound", "codes" or "text"), and how many shards could not be
    opened."""
    shards = corpus.shards(split)
    found: dict[str, list[tuple[Path, int]]] = {"sound": [], "codes": [], "text": []}
    damaged = 0
    for shard in spread(shards, MOST_SHARDS):
        try:
            with ShardReader(shard) as reader:
                index = reader.index
        except DamagedSample:
            damaged += 1
            continue
        brief = (index.duration > 0) & (index.duration <= LONGEST_SECONDS)
        sound = brief & (index.audio_size > 0)
        for kind, usable in (("sound", sound), ("codes", brief & ~sound), ("text", index.duration == 0)):
            found[kind] += [(shard, int(at)) for at in spread(np.flatnonzero(usable).tolist(), most)]
    kind = next((kind for kind, places in found.items() if places), "text")
    return spread(found[kind], most), kind, damaged


def spread(things: Sequence[T], most: int) -> list[T]:
    """At most `most` of `things`, evenly over them, the first and the last among them."""
    if len(things) <= most:
        return list(things)
    return [things[round(at)] for at in np.linspace(0, len(things) - 1, most)]


def _strip(name: str, rate: float, codes: np.ndarray) -> Strip:
    return Strip(name, rate, len(codes) / rate, codes.tolist(), data_uri("image/png", code_strip_png(codes)))


def data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
