"""Preferences: a conversation with two answers to its last question, one of which was preferred."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from data_pipeline.batch import Sample
from data_pipeline.layouts.chat import chat
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput

ANSWERS = ("chosen", "rejected")
"""The roles of the two answers in a document, in the order of a sample's segments."""


def preferences(
    utterances: Sequence[Utterance], vocabulary: Vocabulary, rng: np.random.Generator, **options: Any
) -> list[Sample]:
    """One sample a document whose answers have the roles `chosen` and `rejected`: two segments, each the whole chat
    with one of them as its last assistant turn. A document that lacks one, has the same twice, or lacks what the form
    asks for gives none.

    options: those of `chat`, by which both are laid out; `loss` is of the answers alone. The preferred answer stands
    first. Nothing is drawn: a document is the same sample in every epoch.
    """
    if options.get("loss", "last") != "last":
        raise BadInput("layout preferences: only the answers that differ are compared; option loss is last")
    given = [utterance for utterance in utterances if utterance.role not in ANSWERS]
    segments: list[Sample] = []
    for role in ANSWERS:
        answer = [replace(utterance, role="assistant") for utterance in utterances if utterance.role == role]
        segments += chat([*given, *answer], vocabulary, rng, **options) if answer or not utterances else []
    if len(segments) < 2 or np.array_equal(segments[0].tokens, segments[1].tokens):
        return []
    return [_side_by_side(*segments)]


def _side_by_side(chosen: Sample, rejected: Sample) -> Sample:
    """Both as one sample that is never cut."""
    return msgspec.structs.replace(
        chosen,
        tokens=np.concatenate([chosen.tokens, rejected.tokens]),
        loss_weight=np.concatenate([chosen.loss_weight, rejected.loss_weight]),
        modality=np.concatenate([chosen.modality, rejected.modality]),
        group=np.zeros(len(chosen) + len(rejected), np.int32),
        audio_seconds=chosen.audio_seconds + rejected.audio_seconds,
        slots=(*chosen.slots, *(replace(run, start=run.start + len(chosen)) for run in rejected.slots)),
        segments=(len(chosen), len(rejected)),
    )
