"""Cutting utterances between words, so that each stretch has its text and its codes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from data_pipeline.layouts.assembly import Assembly
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary

_UNSPACED = ("zh", "yue", "ja", "th")  # languages that are written without spaces between words or sentences


class Stretch(NamedTuple):
    """A stretch of an utterance: its text, with the space before it but none after, and its groups of codes.

    `begins`: it is the first of its utterance.
    """

    text: str
    groups: np.ndarray
    language: str
    begins: bool


def whole_stretch(utterance: Utterance, groups: np.ndarray) -> Stretch:
    """All of an utterance."""
    return Stretch(utterance.text.strip(), groups, utterance.language, begins=True)


def spacing(language: str) -> str:
    """What stands between two sentences of a language ("en", "zh-CN")."""
    return "" if language.lower().startswith(_UNSPACED) else " "


def joined(texts: Iterable[tuple[str, str]]) -> str:
    """Texts of whole utterances, each with its language, as one."""
    whole = ""
    for text, language in texts:
        whole += spacing(language) + text if whole else text
    return whole


def cut(utterance: Utterance, groups: np.ndarray, vocabulary: Vocabulary, firsts: Sequence[int]) -> list[Stretch]:
    """The stretches that begin at the words `firsts`, ascending from 0.

    A stretch's codes go from where its first word starts to where the next one's does, rounded to whole groups; the
    first also has what is before it and the last what is after.
    """
    seconds = vocabulary.group_seconds
    bounds = [min(len(groups), max(0, round(utterance.words[first].start / seconds))) for first in firsts[1:]]
    edges = np.maximum.accumulate([0, *bounds, len(groups)])
    texts = word_texts(utterance, firsts)
    return [
        Stretch(texts[i], groups[edges[i] : edges[i + 1]], utterance.language, begins=i == 0)
        for i in range(len(firsts))
    ]


def word_texts(utterance: Utterance, firsts: Sequence[int]) -> list[str]:
    """The text of the stretches that begin at the words `firsts`: with the punctuation that stands in the utterance's
    text where its words are found there in order, else the words alone."""
    words = [word.text for word in utterance.words]
    starts = []
    at = 0
    for word in words:
        found = utterance.text.find(word, at)
        if found < 0:
            space = spacing(utterance.language)
            ends = [*firsts[1:], len(words)]
            return [
                (space if first else "") + space.join(words[first:end]) for first, end in zip(firsts, ends, strict=True)
            ]
        starts.append(found)
        at = found + len(word)
    edges = [0, *(starts[first] for first in firsts[1:]), len(utterance.text)]
    for i in range(1, len(firsts)):  # the space before a word goes with it
        while utterance.text[edges[i] - 1 : edges[i]].isspace():
            edges[i] -= 1
    return [utterance.text[edges[i] : edges[i + 1]] for i in range(len(firsts))]


def lay_alternating(
    assembly: Assembly,
    drawn: Iterable[tuple[bool, Stretch]],
    audio_weights: Iterator[float],
    text_weights: Iterator[float],
) -> Assembly:
    """Add stretches, each spoken or written; neighbours of one kind run together. The loss weights are those of each
    run of audio and of text in turn."""
    begun = False
    for spoken, run in groupby(drawn, key=lambda pair: pair[0]):
        together = [stretch for _, stretch in run]
        if spoken:
            assembly.audio(np.concatenate([stretch.groups for stretch in together]), next(audio_weights))
        else:
            written = ""
            for stretch in together:
                apart = stretch.begins and (begun or written)
                written += (spacing(stretch.language) if apart else "") + stretch.text
            assembly.text(written, next(text_weights))
        begun = True
    return assembly
