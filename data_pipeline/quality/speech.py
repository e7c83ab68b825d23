"""How much of an utterance is speech, by the voice activity detector that also cuts recordings."""

from __future__ import annotations

import numpy as np

from configs.checks.quality import MEASURES
from data_pipeline.cutting.silero import speech_probabilities, vad_identity
from data_pipeline.utterance import Utterance

_SPEECH = 0.5  # probability above which a frame is speech


class SpeechShare:
    """`speech_share`: frames of 32 ms that silero takes for speech, over all."""

    columns: tuple[str, ...] = MEASURES["speech"]

    def measure(self, wave: np.ndarray, utterance: Utterance) -> dict[str, float]:
        """See `Measure.measure`."""
        return {"speech_share": float((speech_probabilities(wave) > _SPEECH).mean())} if len(wave) else {}

    def identity(self) -> str:
        """See `Measure.identity`."""
        return vad_identity()
