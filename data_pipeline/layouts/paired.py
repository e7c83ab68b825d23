"""Layouts that give one modality and ask for the other: speech recognition and speech synthesis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from data_pipeline.batch import Sample
from data_pipeline.layouts.assembly import MARKS, SPEAK, TRANSCRIBE, Assembly, check_stride, check_weight, hear
from data_pipeline.layouts.groups import lay_groups
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary


def asr(
    utterances: Sequence[Utterance],
    vocabulary: Vocabulary,
    rng: np.random.Generator,
    *,
    audio_weight: float = 0.0,
    task: str = TRANSCRIBE,
    encoder: str = "",
    stride: int = 1,
    marks: Sequence[str] = MARKS,
    frames: bool = False,
) -> list[Sample]:
    """One sample an utterance: audio, `task` (a template), text. Loss on the text; on all before it `audio_weight`.

    With an `encoder` the audio is places for its vectors, `stride` of them each, and the utterance needs no codes.
    """
    check_weight("audio_weight", audio_weight)
    check_stride(stride)
    whole = [(utterance, hear([utterance], vocabulary, encoder, stride)) for utterance in utterances if utterance.text]
    return [
        Assembly(vocabulary, marks=marks, frames=frames)
        .heard(heard, audio_weight)
        .markup(task, audio_weight)
        .text(utterance.text, 1.0)
        .end()
        .sample(f"{utterance.document}/{utterance.key}")
        for utterance, heard in whole
        if heard
    ]


def tts(
    utterances: Sequence[Utterance],
    vocabulary: Vocabulary,
    rng: np.random.Generator,
    *,
    text_weight: float = 0.0,
    task: str = SPEAK,
    marks: Sequence[str] = MARKS,
    frames: bool = False,
) -> list[Sample]:
    """One sample an utterance: text, `task` (a template), audio. Loss on the audio; on all before it `text_weight`."""
    check_weight("text_weight", text_weight)
    return [
        Assembly(vocabulary, marks=marks, frames=frames)
        .text(utterance.text, text_weight)
        .markup(task, text_weight)
        .audio(groups, 1.0)
        .end()
        .sample(f"{utterance.document}/{utterance.key}")
        for utterance, groups in pairs(utterances, vocabulary)
    ]


def pairs(utterances: Sequence[Utterance], vocabulary: Vocabulary) -> Iterator[tuple[Utterance, np.ndarray]]:
    """The utterances that have both text and speech, each with its groups."""
    for utterance in utterances:
        groups = lay_groups(utterance, vocabulary)
        if utterance.text and len(groups):
            yield utterance, groups
