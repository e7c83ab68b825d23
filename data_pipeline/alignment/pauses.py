"""Pauses taken out of word times: an aligner that gives every moment to a word gives pauses to one too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipeline.audio import SAMPLE_RATE
from data_pipeline.utterance import Word

_FRAME = 0.01  # seconds
_QUIET = 30.0  # dB below the loud frames of the utterance
_LOUD = 0.9  # quantile of the frames' power


def trim(words: Sequence[Word], wave: np.ndarray) -> tuple[Word, ...]:
    """`words` without the quiet frames at their ends; a word with nothing else stays as it is."""
    size = round(_FRAME * SAMPLE_RATE)
    if len(wave) < size:
        return tuple(words)
    power = np.square(wave[: len(wave) // size * size].reshape(-1, size)).mean(1)
    loud = power > np.quantile(power, _LOUD) * 10 ** (-_QUIET / 10)
    trimmed = []
    for word in words:
        first, last = round(word.start / _FRAME), round(word.end / _FRAME)
        heard = np.flatnonzero(loud[first:last]) + first
        if len(heard):
            start, end = max(word.start, heard[0] * _FRAME), min(word.end, (heard[-1] + 1) * _FRAME)
            word = Word(word.text, round(float(start), 3), round(float(end), 3))
        trimmed.append(word)
    return tuple(trimmed)
