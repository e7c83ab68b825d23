"""Aligners by name, from their settings."""

from __future__ import annotations

from configs.checks.quality import check_alignment
from configs.schema import AlignmentConfig, QualityConfig
from data_pipeline.alignment.aligner import Aligner
from data_pipeline.alignment.attention import AttentionAligner
from data_pipeline.alignment.ctc_aligner import CtcAligner

SETTING = "corpus.alignment.model"


def open_aligner(config: AlignmentConfig) -> Aligner | None:
    """The aligner of `config`, None where words have times only if their source has them. Cheap: weights are read by
    the first `align`. Raises BadInput for settings that cannot be."""
    check_alignment(config)
    if config.aligner is None:
        return None
    if config.aligner == "ctc":
        return CtcAligner(str(config.model), SETTING, config.window)
    return AttentionAligner(config.model or QualityConfig().recogniser, SETTING)
