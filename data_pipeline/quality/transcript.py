"""How far a transcript is from what a Whisper hears: word and character error rates.

English is normalised as OpenAI's evaluation does (numbers, contractions, fillers; without its table of British
spellings), other languages by case, punctuation and spaces. Chinese, Japanese, Korean and Thai have character error
rates only.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from configs.checks.quality import MEASURES
from data_pipeline.alignment.whisper import open_whisper, whisper_identity
from data_pipeline.packages import package_version
from data_pipeline.quality.language import base_language
from data_pipeline.utterance import Utterance

SETTING = "corpus.quality.recogniser"
_CHARACTERS_ONLY = ("zh", "ja", "ko", "th")


class Transcript:
    """`wer` and `cer`: errors over the words, or characters without spaces, of the transcript; above 1 where more is
    heard than written. Neither where the transcript is empty once normalised, or in a language the Whisper lacks."""

    columns: tuple[str, ...] = MEASURES["transcript"]

    def __init__(self, recogniser: str) -> None:
        self._spec = recogniser

    def measure(self, wave: np.ndarray, utterance: Utterance) -> dict[str, float]:
        """See `Measure.measure`."""
        language = base_language(utterance.language)
        written = self.normalise(utterance.text, language)
        if not any(map(str.isalnum, written)) or not len(wave):
            return {}
        heard = open_whisper(self._spec, SETTING).transcribe(wave, language)
        if heard is None:
            return {}
        return error_rates(written, self.normalise(heard, language), language)

    def identity(self) -> str:
        """See `Measure.identity`."""
        versions = " ".join(f"{name} {package_version(name)}" for name in ("transformers", "jiwer"))
        return f"{whisper_identity(self._spec, SETTING)}; {versions}"

    def normalise(self, text: str, language: str) -> str:
        """`text` as errors are counted on it."""
        return self._english(text) if language == "en" else self._basic(text).strip()

    @cached_property
    def _english(self) -> Any:
        from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

        return EnglishTextNormalizer({})

    @cached_property
    def _basic(self) -> Any:
        from transformers.models.whisper.english_normalizer import BasicTextNormalizer

        return BasicTextNormalizer()


def error_rates(written: str, heard: str, language: str) -> dict[str, float]:
    """`wer` and `cer` of two normalised texts, the first not empty."""
    import jiwer

    rates = {"cer": float(jiwer.cer(written.replace(" ", ""), heard.replace(" ", "")))}
    return rates if language in _CHARACTERS_ONLY else {"wer": float(jiwer.wer(written, heard))} | rates
