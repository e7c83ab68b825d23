"""Layouts that give one modality and ask for the other: speech recognition and speech synthesis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from data_pipeline.batch import Sample
from data_pipeline.layouts.assembly import SPEAK, TRANSCRIBE, Assembly, check_weight
from data_pipeline.layouts.groups import lay_groups
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary


def asr(
    utterances: Sequence[Utterance], vocabulary: Vocabulary, rng: np.random.Generator, *, audio_weight: float = 0.0
) -> list[Sample]:
    """One sample an utterance: audio, `<|transcribe|>`, text. Loss on the text; on the audio side `audio_weight`."""
    check_weight("audio_weight", audio_weight)
    return [
        Assembly(vocabulary)
        .audio(groups, audio_weight)
        .special(TRANSCRIBE, audio_weight)
        .text(utterance.text, 1.0)
        .sample(f"{utterance.document}/{part}")
        for part, utterance, groups in _pairs(utterances, vocabulary)
    ]


def tts(
    utterances: Sequence[Utterance], vocabulary: Vocabulary, rng: np.random.Generator, *, text_weight: float = 0.0
) -> list[Sample]:
    """One sample an utterance: text, `<|speak|>`, audio. Loss on the audio; on the text side `text_weight`."""
    check_weight("text_weight", text_weight)
    return [
        Assembly(vocabulary)
        .text(utterance.text, text_weight)
        .special(SPEAK, text_weight)
        .audio(groups, 1.0)
        .sample(f"{utterance.document}/{part}")
        for part, utterance, groups in _pairs(utterances, vocabulary)
    ]


def _pairs(utterances: Sequence[Utterance], vocabulary: Vocabulary) -> Iterator[tuple[str, Utterance, np.ndarray]]:
    """The utterances that have both text and speech, each with its key and its groups."""
    for utterance in utterances:
        groups = lay_groups(utterance, vocabulary)
        if utterance.text and len(groups):
            yield utterance.key, utterance, groups
