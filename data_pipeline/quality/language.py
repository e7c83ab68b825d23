"""Whether a transcript is in the language that its label says, by py3langid."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from configs.checks.quality import MEASURES
from data_pipeline.packages import package_version
from data_pipeline.utterance import Utterance


class Language:
    """`language_probability` of the labelled language; not where text or label is empty, or the language is not one of
    py3langid's 97. A short text tells little: one word may well be in several languages."""

    columns: tuple[str, ...] = MEASURES["language"]

    @cached_property
    def _identifier(self) -> Any:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

    def measure(self, wave: np.ndarray, utterance: Utterance) -> dict[str, float]:
        """See `Measure.measure`."""
        if not utterance.text.strip():
            return {}
        ranked = dict(self._identifier.rank(utterance.text))
        wanted = base_language(utterance.language)
        return {"language_probability": float(ranked[wanted])} if wanted in ranked else {}

    def identity(self) -> str:
        """See `Measure.identity`."""
        return f"py3langid {package_version('py3langid')}"


def base_language(label: str) -> str:
    """Two letters of a label: "en" of "en-GB", "zh" of "cmn" and "zh_CN"."""
    base = label.replace("_", "-").split("-")[0].lower()
    return {"cmn": "zh", "yue": "zh", "eng": "en", "zho": "zh", "jpn": "ja", "kor": "ko"}.get(base, base)
