"""Measurements by kind. The one registry of them is here."""

from __future__ import annotations

from collections.abc import Callable

from configs.schema import MeasurementConfig, MeasurementKind
from train.evaluation.asr import Asr
from train.evaluation.likelihood import CodebookPerplexity, TextPerplexity
from train.evaluation.measurement import Measurement
from train.evaluation.questions import Questions
from train.evaluation.speech import Resynthesis, Tts
from train.evaluation.subject import Subject
from train.evaluation.tasks import Tasks

_OPEN: dict[MeasurementKind, Callable[[Subject, MeasurementConfig], Measurement]] = {
    MeasurementKind.asr: lambda subject, config: Asr(subject),
    MeasurementKind.codebooks: CodebookPerplexity,
    MeasurementKind.perplexity: TextPerplexity,
    MeasurementKind.questions: Questions,
    MeasurementKind.resynthesis: lambda subject, config: Resynthesis(subject),
    MeasurementKind.tasks: Tasks,
    MeasurementKind.tts: lambda subject, config: Tts(subject),
}


def open_measurement(subject: Subject, config: MeasurementConfig) -> Measurement:
    """Raises BadInput where the model lacks what the measurement needs."""
    return _OPEN[config.kind](subject, config)
