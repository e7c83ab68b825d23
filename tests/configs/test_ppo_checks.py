"""PPO in the config: Step-Audio's figures are the paper's, what cannot be is refused in one line that names the key."""

from __future__ import annotations

import pytest

from configs.checks import check
from configs.compose import compose_stage
from configs.schema import Config
from data_pipeline.layouts import find_layout
from runtime.exits import BadInput
from train.reinforcement.prompts import check_prompts
from train.schedule import rate_of_step


def stage(*settings: str, scale: str = "tiny") -> Config:
    return compose_stage("step_audio", scale, "ppo", list(settings))


def test_step_audios_figures() -> None:
    config = stage(scale="paper")
    check(config, 1024)
    ppo = config.ppo
    assert (ppo.critic_warmup, ppo.clip, ppo.kl, ppo.reward) == (80, 0.2, 0.05, "stage:reward_audio")
    assert config.stage.weights == "sft_chat"
    assert [rate_of_step(config, step) for step in (1, 80)] == [0, 0]
    assert rate_of_step(config, 81) == pytest.approx(1e-6, rel=1e-3)
    assert rate_of_step(config, config.train.steps) == pytest.approx(2e-7)
    check(stage(), 2)
    check(stage(scale="small"), 1)


@pytest.mark.parametrize(
    "setting, line",
    [
        ("ppo.reward=null", "needs a reward model; name its stage"),
        ("ppo.prompts=33", "ppo.prompts=33 is no multiple of train.global_batch=16"),
        ("ppo.prompts=0", "ppo.prompts=0"),
        ("ppo.longest=512", "leaves no room for a question in train.sequence_length=512"),
        ("ppo.critic_warmup=6", "ppo.critic_warmup=6 leaves the policy none of train.steps=6"),
        ("ppo.clip=1.0", "ppo.clip=1.0"),
        ("ppo.clip_value=0.0", "ppo.clip_value=0.0"),
        ("ppo.critic_lr=0.0", "ppo.critic_lr=0.0"),
        ("ppo.kl=-0.1", "ppo.kl=-0.1"),
        ("ppo.trace=1.1", "ppo.trace=1.1"),
        ("engine=deepspeed", "runs on engine.name=megatron alone"),
        ("parallel.overlap_gradients=true", "overlap_gradients"),
        ("parallel.context=2", "parallel.context=2"),
        ("stage.lora={rank: 4}", "stage.lora: not built for stage.objective=ppo"),
        ("stage.audio_rows=centroids", "stage.audio_rows: not built for stage.objective=ppo"),
        ("loss.smoothing=0.1", "loss.smoothing=0.1"),
    ],
)
def test_what_cannot_be_is_refused(setting: str, line: str) -> None:
    with pytest.raises(BadInput) as caught:
        check(stage(setting))
    assert line in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options, line",
    [
        ({"form": "AQAA"}, "form AQAA: the answers of stage.objective=ppo are written; take TQTA or AQTA"),
        ({"form": "AQTA", "encoder": "whisper", "stride": 2}, "not in an encoder's features"),
        ({"form": "TQTA", "text_weight": 0.0}, "leaves no answer to learn"),
    ],
)
def test_questions_that_cannot_be_answered_are_refused(options: dict[str, object], line: str) -> None:
    with pytest.raises(BadInput, match=line):
        check_prompts({"s": find_layout("preferences", options)})


def test_questions_come_from_one_source() -> None:
    layout = find_layout("preferences", {"form": "TQTA"})
    with pytest.raises(BadInput, match="from one source; here are a, b"):
        check_prompts({"a": layout, "b": layout})
