"""What is heard of speech that a model said: a decoder makes sound of it, which is measured as a corpus's is.

Step-Audio filters what its data engine says by recognition, voice activity, diarisation and noise (2502.11946, section
5.1.1): here the measures transcript, speech, speaker_similarity and dnsmos. Sound is not kept, its numbers are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from configs.checks.quality import GENERATION_MEASURES, MEASURES
from configs.schema import Config, Made
from data_pipeline.audio import decode_flac, resample
from data_pipeline.quality.filters import Filter, known_names, parse_filter
from data_pipeline.quality.registry import open_measures
from data_pipeline.quality.speaker import similarity, speaker_identity
from data_pipeline.shards import DamagedSample, ShardReader
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput
from train.decoder.codes import CodesDecoder
from train.generation.teacher import export_of

OF_CODES = ("ended", "repeated_share", "characters_per_second")
"""Columns that need no sound: 1 where the model ended its speech itself; share of groups that are the one before again;
of the text."""
SIMILARITY = "speaker_similarity"


@dataclass(frozen=True)
class Voice:
    """How a prompt sounds, float32 [samples] at 16 kHz; recorded: whether that is its own sound, or the decoder's."""

    sound: np.ndarray
    recorded: bool


class Hearing:
    """Measures of a decoder's sound, which read their weights when they are first asked."""

    def __init__(self, config: Config, decoder: CodesDecoder) -> None:
        """Raises BadInput for a measure that is not there."""
        options, quality = config.generation, config.corpus.quality
        names = [name for name in options.measures if name in MEASURES]
        self._measures = dict(zip(names, open_measures(replace(quality, measures=names)), strict=True))
        self._encoder = quality.speaker if SIMILARITY in options.measures else None
        self._decoder = decoder

    def voice(self, prompt: Utterance, recording: np.ndarray | None) -> Voice | None:
        """Of the prompt's recording; where there is none and voices are compared, of what the decoder makes of its
        codes."""
        if recording is not None:
            return Voice(recording, recorded=True)
        if self._encoder is None:
            return None
        return Voice(resample(*self._decoder.decode(prompt.codes)), recorded=False)

    def quality(self, said: Utterance, voice: Voice | None) -> dict[str, float]:
        """Columns of an utterance's codes, said after a prompt of that voice. A column that does not apply is left
        out."""
        wave = resample(*self._decoder.decode(said.codes, voice.sound if voice and voice.recorded else None))
        found: dict[str, float] = {}
        for measure in self._measures.values():
            found |= measure.measure(wave, said)
        if voice is not None and self._encoder is not None:
            likeness = similarity(self._encoder, wave, voice.sound)
            found |= {} if likeness is None else {SIMILARITY: likeness}
        return found

    def identity(self) -> dict[str, Any]:
        """What decides the columns beside the codes, JSON-ready: hashes of the decoder's parts, and the judges."""
        judges = {name: measure.identity() for name, measure in self._measures.items()}
        judges |= {} if self._encoder is None else {SIMILARITY: speaker_identity(self._encoder)}
        return {"decoder": self._decoder.identity(), "measures": judges}


def recording_in(shard: Path, sample: int) -> np.ndarray | None:
    """The sound of an utterance, float32 [samples] at 16 kHz; None where the shard keeps none. One that is damaged is
    told, and counts as none."""
    try:
        with ShardReader(shard) as reader:
            flac = reader.read_audio(sample)
        return None if flac is None else decode_flac(flac)
    except (DamagedSample, BadInput) as error:
        print(f"megaphone: the sound of a prompt, {shard} sample {sample}, is not heard: {error}", flush=True)
        return None


def hearing_of(config: Config) -> Hearing | None:
    """What `generation.decoder` and `generation.measures` ask for; None: nothing is heard.

    Raises BadInput where the decoder is none, or was trained on other codebooks than the model that speaks.
    """
    options = config.generation
    if options.decoder is None or options.makes is not Made.speech:
        return None
    vocabulary = Vocabulary.load(export_of(config))
    named = f"generation.decoder: {options.decoder}"
    decoder = CodesDecoder.of_model(vocabulary, options.decoder, options.vocoder, named=named, device=options.device)
    return Hearing(config, decoder)


def funnel_of(config: Config) -> Filter | None:
    """`generation.funnel`. Raises BadInput for what is no condition, or asks for what the corpus will not have."""
    options = config.generation
    if options.funnel is None or options.makes is not Made.speech:
        return None
    condition = parse_filter(options.funnel)
    there = known_names(columns_of(config))
    for name in condition.names:
        if name not in there:
            raise BadInput(f"generation.funnel: no column {name}; what is said will have {', '.join(there)}")
    return condition


def require_judges(config: Config) -> None:
    """Raise BadInput where decoder, judges or columns that `generation` asks for are not there, before a model is
    read."""
    hearing = hearing_of(config)
    if hearing is not None:
        hearing.identity()  # finds the weights of all judges
    funnel_of(config)


def columns_of(config: Config) -> tuple[str, ...]:
    """Columns of what this stage says, in order."""
    heard = (column for name in config.generation.measures for column in GENERATION_MEASURES[name])
    return tuple(dict.fromkeys((*OF_CODES, *heard)))
