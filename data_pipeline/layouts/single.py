"""Layouts of one modality: speech alone, text alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipeline.batch import Sample
from data_pipeline.layouts.assembly import MARKS, Assembly
from data_pipeline.layouts.cuts import joined
from data_pipeline.layouts.groups import lay_groups
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary


def continuation(
    utterances: Sequence[Utterance],
    vocabulary: Vocabulary,
    rng: np.random.Generator,
    *,
    marks: Sequence[str] = MARKS,
    frames: bool = False,
) -> list[Sample]:
    """One sample a document: all its speech, one utterance after the other. Loss on every token."""
    laid = [lay_groups(utterance, vocabulary) for utterance in utterances]
    if not any(len(groups) for groups in laid):
        return []
    assembly = Assembly(vocabulary, marks=marks, frames=frames).audio(np.concatenate(laid), 1.0)
    return [assembly.end().sample(f"{utterances[0].document}/0")]


def text(
    utterances: Sequence[Utterance], vocabulary: Vocabulary, rng: np.random.Generator, *, frames: bool = False
) -> list[Sample]:
    """One sample a document: all its text, spoken or not. Loss on every token."""
    whole = joined((utterance.text, utterance.language) for utterance in utterances if utterance.text)
    if not whole:
        return []
    return [Assembly(vocabulary, frames=frames).text(whole, 1.0).end().sample(f"{utterances[0].document}/0")]
