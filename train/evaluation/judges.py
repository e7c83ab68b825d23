"""Those who listen: an outside recogniser, a speaker encoder, DNSMOS. They know nothing of the model.

Published figures come from larger judges (Whisper large-v3, Paraformer, ERes2Net, WavLM): figures compare where the
judges are the same, and results name them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from configs.schema import QualityConfig
from data_pipeline.alignment.whisper import open_whisper, whisper_identity
from data_pipeline.quality import transcript
from data_pipeline.quality.dnsmos import Dnsmos
from data_pipeline.quality.errors import count_errors
from data_pipeline.quality.language import base_language
from data_pipeline.quality.speaker import SETTING as SPEAKER
from data_pipeline.quality.speaker import similarity
from data_pipeline.utterance import Utterance
from train.evaluation.figures import Figure, mean, share
from train.evaluation.measurement import Record

DNSMOS = ("dnsmos_ovrl", "dnsmos_sig", "dnsmos_bak", "dnsmos_p808")


class Judges:
    """Each reads its weights when it is first asked."""

    def __init__(self, config: QualityConfig) -> None:
        self._config = config

    @cached_property
    def _dnsmos(self) -> Dnsmos:
        return Dnsmos(self._config.dnsmos)

    def hear(self, wave: np.ndarray, language: str) -> str | None:
        """What the recogniser hears in float32 [samples] at 16 kHz; None for a language that it does not know."""
        if not len(wave):
            return ""
        return open_whisper(self._config.recogniser, transcript.SETTING).transcribe(wave, base_language(language))

    def similarity(self, wave: np.ndarray, other: np.ndarray) -> float | None:
        """Cosine of two voices; None where one of them is too short to tell."""
        return similarity(self._config.speaker, wave, other)

    def quality(self, wave: np.ndarray) -> dict[str, float]:
        """DNSMOS of a sound by name; nothing of silence."""
        return self._dnsmos.measure(wave, Utterance("", "", ""))

    def listen(self, text: str, wave: np.ndarray, language: str, voice: np.ndarray | None) -> Record:
        """All of a sound that should say `text` in the voice of `voice`."""
        heard = self.hear(wave, language)
        likeness = None if voice is None else self.similarity(wave, voice)
        return (
            ({} if heard is None else errors_of(text, heard, language))
            | ({} if likeness is None else {"similarity": likeness})
            | self.quality(wave)
        )

    def describe(self) -> dict[str, str]:
        """Who they are, for results."""
        return {
            "recogniser": whisper_identity(self._config.recogniser, transcript.SETTING),
            "speaker": f"GE2E encoder {self._config.speaker} ({SPEAKER})",
            "dnsmos": self._dnsmos.identity(),
        }


def errors_of(text: str, heard: str, language: str) -> Record:
    """`heard` and its errors against `text`, both normalised; no counts where the text has no words."""
    counted = count_errors(text, heard, base_language(language))
    if counted is None:
        return {"heard": heard}
    told = {"heard": heard, "character_errors": counted.character_errors, "characters": counted.characters}
    return told | ({"word_errors": counted.word_errors, "words": counted.words} if counted.words else {})


def error_figures(records: Sequence[Record], prefix: str = "") -> dict[str, Figure]:
    """`wer` and `cer` over the items that have counts."""
    found = {}
    for name, errors, of in (("wer", "word_errors", "words"), ("cer", "character_errors", "characters")):
        held = [record for record in records if errors in record]
        if held:
            found[prefix + name] = share([record[errors] for record in held], [record[of] for record in held])
    return found


def listened(records: Sequence[Record], prefix: str = "") -> dict[str, Figure]:
    """Figures of what `Judges.listen` told of items."""
    found = error_figures(records, prefix)
    for name, unit in (("similarity", "cosine"), *((name, "1 to 5") for name in DNSMOS)):
        values = [record[name] for record in records if name in record]
        if values:
            found[prefix + name] = mean(values, unit)
    return found
