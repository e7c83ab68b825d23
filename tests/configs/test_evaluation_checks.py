"""Evaluations that cannot be, refused in one line."""

from __future__ import annotations

import pytest

from configs.checks.evaluation import check_evaluation
from configs.compose import compose_stage, groups
from configs.schema import Config
from runtime.exits import BadInput

QUICKSTART = ["evaluation=step_audio"]


@pytest.mark.parametrize("name", groups()["evaluation"])
def test_every_evaluation_here_can_be(name: str) -> None:
    config = compose_stage("quickstart", "tiny", None, [f"evaluation={name}"])
    check_evaluation(config)
    assert config.evaluation.measurements and config.evaluation.name == name


@pytest.mark.parametrize(
    "words, problem",
    [
        (["evaluation.measurements.asr.sets=[]"], r"evaluation\.measurements\.asr\.sets names no set"),
        (
            ["evaluation.measurements.asr.sets=[librispech]"],
            "no set librispech in evaluation.sets; there are ",
        ),
        (
            ["evaluation.measurements.asr.sets=[zero_shot]"],
            "set of kind tasks, which asr does not measure",
        ),
        (["evaluation.measurements.codebooks.sets=[seed_en]"], "kind seed_tts, which codebooks does not measure"),
        (["evaluation.measurements.text.window=1"], "text.window=1: has to be 2 or above"),
        (["evaluation.measurements.tts.limit=0"], "tts.limit=0: has to be above 0, or null"),
        (["evaluation.measurements.tts.batch=0"], "tts.batch=0: has to be above 0"),
        (["evaluation.measurements.questions.layout=asr"], "layout=asr: questions are asked in chat, or as text"),
        (["evaluation.sets.seed_en.path=null"], r"seed_en\.path: a set of kind seed_tts lies somewhere"),
        (["evaluation.damaged_share=2"], "has to be from 0 to 1"),
        (["evaluation.players=-1"], "has to be 0 or above"),
        (["stage.kind=evaluate"], "give the stage whose model it measures as stage.weights"),
    ],
)
def test_what_cannot_be_is_one_line(words: list[str], problem: str) -> None:
    config = compose_stage("quickstart", "tiny", None, [*QUICKSTART, *words])
    with pytest.raises(BadInput, match=problem):
        check_evaluation(config)


def test_a_stage_that_evaluates_needs_something_to_measure() -> None:
    config = Config()
    check_evaluation(config)
    config = compose_stage("quickstart", "tiny", None, ["stage.kind=evaluate"])
    with pytest.raises(BadInput, match="nothing to measure; choose evaluation=<name>"):
        check_evaluation(config)
