"""How fast a transcript is spoken: far too fast or slow, and it is another text's sound."""

from __future__ import annotations

import numpy as np

from configs.checks.quality import MEASURES
from data_pipeline.audio import SAMPLE_RATE
from data_pipeline.utterance import Utterance


class Rate:
    """`characters_per_second` of the text over the sound; not where there is no text."""

    columns: tuple[str, ...] = MEASURES["rate"]

    def measure(self, wave: np.ndarray, utterance: Utterance) -> dict[str, float]:
        """See `Measure.measure`."""
        if not len(wave) or not utterance.text:
            return {}
        return {"characters_per_second": len(utterance.text) * SAMPLE_RATE / len(wave)}

    def identity(self) -> str:
        """See `Measure.identity`."""
        return "characters / seconds"
