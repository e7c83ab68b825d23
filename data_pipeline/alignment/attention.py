"""Word times from where a Whisper looks: its cross-attention while it is made to write the transcript.

As OpenAI's own word times: weights of the alignment heads, normalised over tokens, smoothed over time, averaged over
heads, and a monotonic path through what is left. A word begins with the first frame of its first token.
"""

from __future__ import annotations

import numpy as np

from data_pipeline.alignment.dtw import warp
from data_pipeline.alignment.pauses import trim
from data_pipeline.alignment.whisper import FRAME, WINDOW, open_whisper, whisper_identity
from data_pipeline.alignment.words import UNSPACED, words_of
from data_pipeline.audio import SAMPLE_RATE
from data_pipeline.quality.language import base_language
from data_pipeline.utterance import Word

_SMOOTHING = 7  # frames of the median filter
_MOST_TOKENS = 440  # of a text; the decoder has 448 positions


class AttentionAligner:
    """Times of utterances of at most 30 s in languages that the Whisper knows; () for others."""

    def __init__(self, spec: str, setting: str) -> None:
        self._spec, self._setting = spec, setting

    def align(self, wave: np.ndarray, text: str, language: str) -> tuple[Word, ...]:
        """See `Aligner.align`."""
        language = base_language(language)
        whisper = open_whisper(self._spec, self._setting)
        prompt = whisper.prompt(language)
        words = words_of(text, language)
        frames = min(round(len(wave) / SAMPLE_RATE / FRAME), round(WINDOW / FRAME))
        if prompt is None or not words or frames < 2 or len(wave) > WINDOW * SAMPLE_RATE:
            return ()
        space = "" if language in UNSPACED else " "
        tokens = [whisper.tokens(space + word) for word in words]
        counts = [len(of) for of in tokens]
        if sum(counts) > _MOST_TOKENS:
            return ()
        weights = whisper.attention(wave, prompt, [token for of in tokens for token in of])
        rows, columns = warp(-focus(weights[:, :, :frames]))
        begins = columns[np.flatnonzero(np.diff(rows, prepend=-1))] * FRAME  # of each token, and of the end
        firsts = np.concatenate([[0], np.cumsum(counts)])
        duration = len(wave) / SAMPLE_RATE
        times = np.minimum(begins[firsts], duration)
        found = [
            Word(word, round(float(start), 3), round(float(end), 3))
            for word, start, end in zip(words, times[:-1], times[1:], strict=True)
        ]
        return trim(found, wave)

    def identity(self) -> str:
        """See `Aligner.identity`."""
        return f"attention {whisper_identity(self._spec, self._setting)}"


def focus(weights: np.ndarray) -> np.ndarray:
    """How much more each token looks at a frame than the others do: float [tokens, frames], of attention [heads,
    tokens, frames]."""
    from scipy.ndimage import median_filter

    mean, deviation = weights.mean(1, keepdims=True), weights.std(1, keepdims=True)
    standard = (weights - mean) / np.maximum(deviation, 1e-8)
    return median_filter(standard, (1, 1, _SMOOTHING), mode="reflect").mean(0)
