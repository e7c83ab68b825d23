"""How far a transcript is from what a Whisper hears: word and character error rates (`errors.py` says how)."""

from __future__ import annotations

import numpy as np

from configs.checks.quality import MEASURES
from data_pipeline.alignment.whisper import open_whisper, whisper_identity
from data_pipeline.packages import package_version
from data_pipeline.quality.errors import count_errors, error_rates, has_words
from data_pipeline.quality.language import base_language
from data_pipeline.utterance import Utterance

SETTING = "corpus.quality.recogniser"


class Transcript:
    """`wer` and `cer`: errors over the words, or characters without spaces, of the transcript; above 1 where more is
    heard than written. Neither where the transcript is empty once normalised, or in a language the Whisper lacks."""

    columns: tuple[str, ...] = MEASURES["transcript"]

    def __init__(self, recogniser: str) -> None:
        self._spec = recogniser

    def measure(self, wave: np.ndarray, utterance: Utterance) -> dict[str, float]:
        """See `Measure.measure`."""
        language = base_language(utterance.language)
        if not has_words(utterance.text, language) or not len(wave):
            return {}
        heard = open_whisper(self._spec, SETTING).transcribe(wave, language)
        if heard is None:
            return {}
        return error_rates([count_errors(utterance.text, heard, language)])

    def identity(self) -> str:
        """See `Measure.identity`."""
        versions = " ".join(f"{name} {package_version(name)}" for name in ("transformers", "jiwer"))
        return f"{whisper_identity(self._spec, SETTING)}; {versions}"
