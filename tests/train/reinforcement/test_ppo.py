"""PPO on real ranks: a reward rises, one curve on every topology, and kill -9 in the middle of it."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from checkpoints.manifest import read_manifest
from runtime.exits import BAD_INPUT
from tests.ranks import RankFailed, run_ranks
from tests.train.reinforcement.liked import FAVOURITE, LONGEST, newest, ppo, rewarding, speaking
from tests.train.runs import metrics, run_config, stage
from tests.train.test_resume import faulty_stage, write
from train.metrics import read_validation
from train.report.charts import charts_of

WARMUP = 4
OF_A_ROUND = 2  # steps


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of a model that speaks, and one of a reward model."""
    folder = tmp_path_factory.mktemp("first")
    run_config(speaking(folder / "speaking"))
    run_config(rewarding(folder / "rewarding"))
    return folder


@pytest.fixture(scope="module")
def alone(first: Path) -> list[dict[str, Any]]:
    """One process."""
    return run_config(ppo(first / "alone", first, train__validate_every=1000, train__validation_packs=24))


def said(run: Path, number: int) -> list[dict[str, Any]]:
    """The answers of a round."""
    rollouts: list[dict[str, Any]] = json.loads((run / f"rollouts/{number:06d}.json").read_text())["rollouts"]
    return rollouts


def test_what_the_reward_model_likes_is_said_more_often(alone: list[dict[str, Any]], first: Path) -> None:
    rewards = [line["ppo/reward"] for line in alone[::OF_A_ROUND]]
    before, after = rewards[: WARMUP // OF_A_ROUND], rewards[-2:]
    assert min(after) > max(before) + 1
    held_out = read_validation(first / "alone")
    assert [record["step"] for record in held_out] == [0, len(alone)]
    assert held_out[1]["ppo/reward"] > held_out[0]["ppo/reward"] + 1
    rounds = [" ".join(one["text"] for one in said(first / "alone", number)) for number in (0, len(rewards) - 1)]
    assert rounds[1].split().count(FAVOURITE) > 2 * rounds[0].split().count(FAVOURITE)


def test_the_critic_warms_up_alone(alone: list[dict[str, Any]]) -> None:
    assert [line["lr/trunk"] == 0 for line in alone[: WARMUP + 1]] == [True] * WARMUP + [False]
    assert alone[WARMUP]["ppo/explained"] > alone[0]["ppo/explained"] + 0.05
    for line in alone[:WARMUP]:
        assert abs(line["loss/drift"]) < 1e-9 and line["loss/clipped"] == 0
    for line in alone[: WARMUP + OF_A_ROUND]:  # the first round of a policy that learns is answered before it does
        assert line["ppo/kl"] == pytest.approx(0, abs=1e-4)
    assert alone[-1]["ppo/kl"] > 0.01


def test_generator_and_trainer_agree_on_every_token(alone: list[dict[str, Any]], first: Path) -> None:
    for line in alone:
        assert 0 < line["ppo/difference"] <= line["ppo/difference_max"] < 1e-4
    for one in said(first / "alone", 3):
        assert 1 <= len(one["answer"]) <= LONGEST
        assert one["ended"] or len(one["answer"]) == LONGEST


def test_the_report_draws_reward_and_kl_of_rounds_and_of_held_out_questions(
    alone: list[dict[str, Any]], first: Path
) -> None:
    charts = {chart.key: chart for chart in charts_of(alone, read_validation(first / "alone"), {})}
    for key, name in (("ppo_reward", "ppo/reward"), ("ppo_kl", "ppo/kl")):
        assert charts[key].lines[0].y == pytest.approx([line[name] for line in alone], rel=1e-3, abs=1e-6)
        assert charts[key].dots[0].x == [0, len(alone)]
    assert [line.name for line in charts["ppo_difference"].lines] == ["mean", "largest"]


def test_a_round_begins_with_ratios_of_one(alone: list[dict[str, Any]]) -> None:
    """What is learnt first of a round is learnt of the policy that spoke."""
    learning = alone[WARMUP:]
    assert all(abs(line["loss/drift"]) < 1e-9 for line in learning[::OF_A_ROUND])
    assert all(line["loss/drift"] > 1e-9 for line in learning[1::OF_A_ROUND])


def test_the_checkpoint_is_the_policys_for_whoever_comes_next(alone: list[dict[str, Any]], first: Path) -> None:
    policy, begun = (read_manifest(newest(first / name)) for name in ("alone", "speaking"))
    assert policy.parameters == begun.parameters
    assert not any("reward_head" in name for name in policy.tensors if name.startswith("model."))
    assert any(name.startswith("critic.model.") for name in policy.tensors)


TERMS = ("loss", "loss/value", "loss/drift", "ppo/reward", "ppo/kl", "ppo/entropy", "ppo/length", "ppo/difference")


@pytest.mark.parametrize(
    "changes",
    [
        {"parallel__tensor": 2, "parallel__sequence": True},
        {"parallel__pipeline": 2},
        {"parallel__distributed_optimizer": True},
    ],
    ids=["tp2", "pp2", "dp2"],
)
def test_the_curve_is_one_on_every_topology(
    changes: dict[str, Any], alone: list[dict[str, Any]], first: Path, tmp_path: Path
) -> None:
    """As far as the same words are drawn: two rounds, in the second of which the policy learns."""
    lines = run_config(ppo(tmp_path / "run", first, train__steps=6, **changes), 2)
    for ours, theirs in zip(lines, alone, strict=False):
        for name in TERMS[:-1]:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-4), (ours["step"], name)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=2e-3)
        assert ours["ppo/difference_max"] < 1e-4


def test_a_killed_stage_has_the_same_curve(alone: list[dict[str, Any]], first: Path, tmp_path: Path) -> None:
    """Killed within the policy's part of the fourth step, in the middle of a round and after a checkpoint there; then
    as the next round is judged."""
    steps = 8
    file = write(ppo(tmp_path / "run", first, train__steps=steps, checkpoint__every=3))
    for call, turn in (("train_step", 2 * 4), ("evaluate", 3)):
        with pytest.raises(RankFailed):
            run_ranks(faulty_stage, 1, file, 0, call, turn, signal.SIGKILL)
        assert newest(tmp_path / "run").name == "step-00000003"
    answers = tmp_path / "run/rollouts/000001.json"
    kept = answers.rename(tmp_path / "elsewhere")
    assert run_ranks(stage, 1, file) == [BAD_INPUT], "the policy that gave them is no more"
    kept.rename(answers)
    assert run_ranks(stage, 1, file) == [0]
    keys = ("step", "tokens", "grad_norm", *TERMS)
    assert [[line[key] for key in keys] for line in metrics(tmp_path / "run")] == [
        [pytest.approx(line[key], rel=1e-6, abs=1e-9) for key in keys] for line in alone[:steps]
    ]
    for number in range(steps // OF_A_ROUND):
        ours, theirs = said(tmp_path / "run", number), said(first / "alone", number)
        assert [one["text"] for one in ours] == [one["text"] for one in theirs]
