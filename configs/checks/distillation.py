"""Generation and distillation: values that cannot work, refused in one line."""

from __future__ import annotations

from configs.checks.quality import GENERATION_MEASURES, check_measures
from configs.schema import Config, GenerationConfig, StageKind
from runtime.exits import BadInput

DISTILL = "distill"  # the objective
_COUNTS = ("utterances", "document", "shard", "longest", "repetition_window", "top_k", "batch")


def check_distillation(config: Config) -> None:
    distillation = config.distillation
    if not 0 < distillation.cross_entropy <= 1:
        raise BadInput(
            f"distillation.cross_entropy={distillation.cross_entropy}: has to be above 0, for the end of speech is "
            "learnt from it alone, and at most 1"
        )
    if not distillation.temperature > 0:
        raise BadInput(f"distillation.temperature={distillation.temperature}: has to be above 0")
    if config.stage.objective == DISTILL and distillation.teacher is None:
        raise BadInput(
            "stage.objective=distill needs distillation.teacher=stage:<name> of a stage that asked a teacher "
            "(stage.kind=generate, generation.makes=teacher)"
        )


def check_generation(config: Config) -> None:
    generation = config.generation
    for name in _COUNTS:
        if getattr(generation, name) < 1:
            raise BadInput(f"generation.{name}={getattr(generation, name)}: has to be at least 1")
    for name in ("validation_share", "repetition_share"):
        if not 0 <= getattr(generation, name) <= 1:
            raise BadInput(f"generation.{name}={getattr(generation, name)}: has to be from 0 to 1")
    if not 0 < generation.top_p <= 1:
        raise BadInput(f"generation.top_p={generation.top_p}: has to be above 0 and at most 1")
    if generation.temperature < 0:
        raise BadInput(f"generation.temperature={generation.temperature}: has to be 0 or above")
    for name in ("prompt_seconds", "seconds_per_character"):
        value = getattr(generation, name)
        if value is not None and not value > 0:
            raise BadInput(f"generation.{name}={value}: has to be above 0")
    _check_heard(generation)
    if config.stage.kind is StageKind.generate and config.stage.weights == "backbone":
        raise BadInput("stage.kind=generate needs stage.weights: the earlier stage, or the export, whose model speaks")


def _check_heard(generation: GenerationConfig) -> None:
    check_measures("generation.measures", generation.measures, GENERATION_MEASURES)
    if generation.decoder is None:
        if generation.vocoder is not None:
            raise BadInput("generation.vocoder needs generation.decoder: the flow that makes the mels it takes")
        if generation.measures:
            raise BadInput(
                f"generation.measures={generation.measures} need generation.decoder: the run folder of a decoder's "
                "flow, which makes the sound that is measured"
            )
        return
    if not generation.measures:
        known = ", ".join(GENERATION_MEASURES)
        raise BadInput(f"generation.decoder has no use without generation.measures, some of {known}")
    if "speaker_similarity" in generation.measures and not generation.prompted:
        raise BadInput("generation.measures: speaker_similarity is to the prompt; it needs generation.prompted=true")
