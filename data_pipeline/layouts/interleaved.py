"""A document that changes between reading and speaking: some spans of its words as audio, the rest as text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from data_pipeline.batch import Sample
from data_pipeline.layouts.assembly import Assembly
from data_pipeline.layouts.groups import group_seconds, lay_groups
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput


class _Piece(NamedTuple):
    """A stretch of an utterance that is either spoken or written, whichever is drawn."""

    text: str
    groups: np.ndarray


def interleaved(
    utterances: Sequence[Utterance],
    vocabulary: Vocabulary,
    rng: np.random.Generator,
    *,
    shortest: int = 4,
    longest: int = 16,
    spoken_share: float = 0.5,
) -> list[Sample]:
    """One sample a document. Its words are cut into spans of `shortest` to `longest` words, and each span is spoken
    with probability `spoken_share`; neighbours of one kind run together. Loss on every token.

    A span's codes go from where its first word starts to where the next span's starts, rounded to whole groups; a
    span that rounds to no group stays text. Utterances without speech are text; ones without word times are one span.
    """
    if not 1 <= shortest <= longest:
        raise BadInput(f"interleaved: need 1 <= shortest <= longest, got {shortest} and {longest}")
    if not 0 <= spoken_share <= 1:
        raise BadInput(f"interleaved: spoken_share must be from 0 to 1, got {spoken_share}")
    pieces = []
    for utterance in utterances:
        for piece in _cut(utterance, vocabulary, rng, shortest, longest):
            draw = rng.random() < spoken_share
            if piece.text or len(piece.groups):
                pieces.append((len(piece.groups) > 0 and (draw or not piece.text), piece))
    if not pieces:
        return []

    assembly = Assembly(vocabulary)
    space = ""
    for spoken, run in groupby(pieces, key=lambda drawn: drawn[0]):
        together = [piece for _, piece in run]
        if spoken:
            assembly.audio(np.concatenate([piece.groups for piece in together]), 1.0)
        else:
            assembly.text(space + " ".join(piece.text for piece in together), 1.0)
        space = " "
    return [assembly.sample(f"{utterances[0].document}/0")]


def _cut(
    utterance: Utterance, vocabulary: Vocabulary, rng: np.random.Generator, shortest: int, longest: int
) -> list[_Piece]:
    groups = lay_groups(utterance, vocabulary)
    if not utterance.words or not len(groups):
        return [_Piece(utterance.text.strip(), groups)]
    count = len(utterance.words)
    firsts = [0]  # first word of each span
    while (step := firsts[-1] + int(rng.integers(shortest, longest + 1))) < count:
        firsts.append(step)
    seconds = group_seconds(vocabulary)
    bounds = [min(len(groups), max(0, round(utterance.words[first].start / seconds))) for first in firsts[1:]]
    texts = _texts(utterance, firsts)
    edges = np.maximum.accumulate([0, *bounds, len(groups)])
    return [_Piece(texts[i], groups[edges[i] : edges[i + 1]]) for i in range(len(firsts))]


def _texts(utterance: Utterance, firsts: list[int]) -> list[str]:
    """The text of the spans that start at the words `firsts`: with the punctuation that stands in the utterance's
    text where its words are found there in order, else the words alone."""
    words = [word.text for word in utterance.words]
    starts = []
    at = 0
    for word in words:
        found = utterance.text.find(word, at)
        if found < 0:
            return [
                " ".join(words[first:until]) for first, until in zip(firsts, [*firsts[1:], len(words)], strict=True)
            ]
        starts.append(found)
        at = found + len(word)
    edges = [0, *(starts[first] for first in firsts[1:]), len(utterance.text)]
    return [utterance.text[edges[i] : edges[i + 1]].strip() for i in range(len(firsts))]
