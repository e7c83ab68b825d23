"""Utterances that are longer than a codec takes: cut, not lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from data_pipeline.audio import SAMPLE_RATE
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
    if not words or not _are_in_order(words) or max(word.end - word.start for word in words) > longest:
        edges = [0.0, *_quiet_places(wave, longest), duration]
        return [Cut(start, end, "", ()) for start, end in pairwise(edges)]
    from data_pipeline.layouts.cuts import word_texts  # which loads torch

    edges, firsts = _pauses(words, duration, longest)
    lasts = [*firsts[1:], len(words)]
    saying = [first for first, last in zip(firsts, lasts, strict=True) if last > first]
    texts = dict(zip(saying, word_texts(utterance, saying), strict=True))
    cuts = []
    for start, end, first, last in zip(edges[:-1], edges[1:], firsts, lasts, strict=True):
        inside = tuple(_moved(word, start) for word in words[first:last])
        cuts.append(Cut(start, end, texts[first].strip() if inside else "", inside))
    return cuts


def _are_in_order(words: Sequence[Word]) -> bool:
    return all(word.start < word.end for word in words) and all(a.start <= b.start for a, b in pairwise(words))


def _moved(word: Word, start: float) -> Word:
    return Word(word.text, round(max(word.start - start, 0.0), 4), round(word.end - start, 4))


def _pauses(words: Sequence[Word], duration: float, longest: float) -> tuple[list[float], list[int]]:
    """Edges of the parts in seconds, 0 and `duration` included, and the first word of each part."""
    lows = [0.0, *(word.end for word in words)]  # before each word, and after the last, it is quiet from here
    highs = [*(word.start for word in words), duration]  # to here
    edges, firsts = [0.0], [0]
    while duration - edges[-1] > longest:
        start, first = edges[-1], firsts[-1]
        limit = start + longest
        ahead = {first: min(highs[first], limit)}  # what is silent before the first word can stand alone
        for number in range(first + 1, len(lows)):
            if lows[number] > limit:
                break
            ahead[number] = min((lows[number] + highs[number]) / 2, limit)
        ahead = {number: place for number, place in ahead.items() if place > start} or {first: limit}
        late = [number for number, place in ahead.items() if place >= start + _EARLIEST * longest]
        chosen = max(late, key=lambda number: (highs[number] - lows[number], number)) if late else max(ahead)
        edges.append(ahead[chosen])
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
