"""Evaluations that cannot be."""

from __future__ import annotations

from configs.schema import Config, EvaluationConfig, MeasurementKind, StageKind
from runtime.exits import BadInput

# Kinds of sets that a measurement takes, where it does not take any that holds speech or things to say.
_TAKES = {
    MeasurementKind.perplexity: ("corpus", "text"),
    MeasurementKind.codebooks: ("corpus",),
    MeasurementKind.tasks: ("tasks",),
}
_WITHOUT_SPEECH = ("tasks", "text")
_POSITIVE = ("batch", "answer_tokens")


def check_evaluation(config: Config) -> None:
    """Raise BadInput for the first value of `evaluation` that cannot work, and for a stage of kind evaluate that has
    nothing to measure or no model."""
    evaluation = config.evaluation
    _check_numbers(evaluation)
    for name, measurement in evaluation.measurements.items():
        where = f"evaluation.measurements.{name}"
        if not measurement.sets:
            raise BadInput(f"{where}.sets names no set")
        for set_name in measurement.sets:
            if set_name not in evaluation.sets:
                known = ", ".join(evaluation.sets) or "none"
                raise BadInput(f"{where}.sets: no set {set_name} in evaluation.sets; there are {known}")
            _check_pair(where, measurement.kind, set_name, evaluation.sets[set_name].kind)
    for name, one in evaluation.sets.items():
        if one.path is None and one.kind != "corpus":
            raise BadInput(f"evaluation.sets.{name}.path: a set of kind {one.kind} lies somewhere")
    if config.stage.kind is StageKind.evaluate:
        if not evaluation.measurements:
            raise BadInput("stage.kind=evaluate has nothing to measure; choose evaluation=<name>")
        if evaluation.model is None and config.stage.weights == "backbone":
            raise BadInput("stage.kind=evaluate: give the stage whose model it measures as stage.weights")


def _check_numbers(evaluation: EvaluationConfig) -> None:
    if evaluation.players < 0:
        raise BadInput(f"evaluation.players={evaluation.players}: has to be 0 or above")
    if not 0 <= evaluation.damaged_share <= 1:
        raise BadInput(f"evaluation.damaged_share={evaluation.damaged_share}: has to be from 0 to 1")
    for name, measurement in evaluation.measurements.items():
        where = f"evaluation.measurements.{name}"
        for key in _POSITIVE:
            if getattr(measurement, key) <= 0:
                raise BadInput(f"{where}.{key}={getattr(measurement, key)}: has to be above 0")
        if measurement.limit is not None and measurement.limit <= 0:
            raise BadInput(f"{where}.limit={measurement.limit}: has to be above 0, or null")
        if measurement.kind is MeasurementKind.questions and measurement.layout not in (None, "chat", "text"):
            raise BadInput(f"{where}.layout={measurement.layout}: questions are asked in chat, or as text")
        if measurement.window < 2:
            raise BadInput(f"{where}.window={measurement.window}: has to be 2 or above")


def _check_pair(where: str, kind: MeasurementKind, name: str, set_kind: str) -> None:
    takes = _TAKES.get(kind)
    if set_kind in _WITHOUT_SPEECH if takes is None else set_kind not in takes:
        raise BadInput(f"{where}.sets: {name} is a set of kind {set_kind}, which {kind.value} does not measure")
