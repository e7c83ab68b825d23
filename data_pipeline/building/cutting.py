"""Utterances that are longer than a codec takes: cut, not lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from data_pipeline.audio import SAMPLE_RATE
from data_pipeline.layouts.cuts import word_texts
from data_pipeline.utterance import Utterance, Word

_STEP = SAMPLE_RATE // 50  # samples of a stretch whose level is compared with others
_EARLIEST = 0.6  # of the longest length: a cut comes no earlier where there is a choice


@dataclass(frozen=True)
class Cut:
    """A part of an utterance, from `start` to `end` seconds of it. Words have times from the start of the part."""

    start: float
    end: float
    text: str
    words: tuple[Word, ...]


def cut_long(wave: np.ndarray, utterance: Utterance, longest: float) -> list[Cut]:
    """`utterance`, said in `wave` (float32 [samples] at 16 kHz), in parts of at most `longest` seconds: one if it is
    no longer.

    Where the words have times, parts end in the longest pause that comes late enough, and have their words' text.
    Else they end where it is quietest and have no text, for nobody knows which part says what.
    """
    duration, words = len(wave) / SAMPLE_RATE, utterance.words
    if duration <= longest:
        return [Cut(0.0, duration, utterance.text, words)]
    if not words or max(word.end - word.start for word in words) > longest:
        edges = [0.0, *_quiet_places(wave, longest), duration]
        return [Cut(start, end, "", ()) for start, end in pairwise(edges)]
    edges, firsts = _pauses(words, duration, longest)
    lasts = [*firsts[1:], len(words)]
    saying = [first for first, last in zip(firsts, lasts, strict=True) if last > first]
    texts = dict(zip(saying, word_texts(utterance, saying), strict=True))
    cuts = []
    for start, end, first, last in zip(edges[:-1], edges[1:], firsts, lasts, strict=True):
        inside = tuple(_moved(word, start) for word in words[first:last])
        cuts.append(Cut(start, end, texts[first].strip() if inside else "", inside))
    return cuts


def _moved(word: Word, start: float) -> Word:
    return replace(word, start=round(max(word.start - start, 0.0), 4), end=round(word.end - start, 4))


def _pauses(words: Sequence[Word], duration: float, longest: float) -> tuple[list[float], list[int]]:
    """Edges of the parts in seconds, 0 and `duration` included, and the first word of each part."""
    places = [
        (words[0].start, words[0].start)
    ]  # before each word and after the last: where to cut, and how long it is quiet
    for word, following in pairwise(words):
        places.append(((word.end + following.start) / 2, following.start - word.end))
    places.append((words[-1].end, duration - words[-1].end))
    edges, firsts = [0.0], [0]
    while duration - edges[-1] > longest:
        start, limit = edges[-1], edges[-1] + longest
        near = [number for number in range(firsts[-1], len(places)) if start < places[number][0] <= limit]
        late = [number for number in near if places[number][0] >= start + _EARLIEST * longest]
        if late:
            chosen = max(late, key=lambda number: (places[number][1], number))
        elif near:
            chosen = near[-1]
        else:  # nothing is said for so long
            edges.append(limit)
            firsts.append(firsts[-1])
            continue
        edges.append(places[chosen][0])
        firsts.append(chosen)
    return [*edges, duration], firsts


def _quiet_places(wave: np.ndarray, longest: float) -> list[float]:
    """Seconds at which to cut: the quietest 20 ms between `_EARLIEST` of the longest length and all of it."""
    steps = len(wave) // _STEP
    level = np.square(wave[: steps * _STEP].reshape(steps, _STEP)).mean(1)
    most = max(int(longest * SAMPLE_RATE) // _STEP, 1)
    places, start = [], 0
    while len(wave) / SAMPLE_RATE - start * _STEP / SAMPLE_RATE > longest:
        earliest = start + max(int(_EARLIEST * most), 1)
        start = earliest + int(np.argmin(level[earliest : start + most + 1]))
        places.append(start * _STEP / SAMPLE_RATE)
    return places
