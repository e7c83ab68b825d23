"""Learning from pairs of answers: losses against float64, one curve on every topology, and kill -9 in the middle."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import structs

from configs.schema import Config, LossConfig, PreferenceConfig, SourceConfig
from data_pipeline.batch import Batch, collate
from data_pipeline.layouts import find_layout
from data_pipeline.packing import fill_packs
from tests.data_pipeline.pairs import make_pair, make_pairs, vocabulary
from tests.ranks import RankFailed, run_ranks
from tests.train.runs import metrics, run_config, tiny_config
from tests.train.test_resume import faulty_stage, write
from train.models.heads.language import LANGUAGE
from train.models.heads.reward import REWARD
from train.models.heads.terms import Losses
from train.models.heads.vocabulary_loss import place_losses
from train.objectives.preference import DirectPreference, pair_of
from train.objectives.reward import BradleyTerry

STEPS = 4
HIDDEN = 8
VOCABULARY = vocabulary()


def a_batch() -> Batch:
    """Six pairs of spoken answers with their texts, in two packs and padding."""
    rng = np.random.default_rng(3)
    layout = find_layout("preferences", {"form": "AQAA", "chunks": [2, 5]})
    documents = [make_pair(rng, f"d{number}") for number in range(6)]
    samples = [sample for document in documents for sample in layout(document, VOCABULARY, rng)]
    packs = fill_packs([structs.replace(sample, key=f"s/4/{sample.key}") for sample in samples], 1536, 0)
    batch = collate(packs)
    assert batch.pairs is not None and len(batch.pairs.keys) == 6
    return batch


def answers(batch: Batch) -> list[tuple[str, list[slice]]]:
    """Each pair's key, and the places of its two segments in a row."""
    assert batch.pairs is not None
    bounds = batch.cu_seqlens.tolist()
    return [
        (key, [slice(bounds[one], bounds[one + 1]) for one in two])
        for key, two in zip(batch.pairs.keys, batch.pairs.segments.tolist(), strict=True)
    ]


@pytest.mark.parametrize("chunk", [0, 7])
@pytest.mark.parametrize("smoothing, nll", [(0.0, 0.0), (0.1, 0.5)])
def test_dpo_is_trls_formula_in_float64_with_audio_masked(chunk: int, smoothing: float, nll: float) -> None:
    """Value, gradients and terms, worked by hand sequence by sequence from all logits at once:
    -logsigmoid(beta (pi_logratio - ref_logratio)), as `trl.DPOTrainer.dpo_loss` has it."""
    batch, beta = a_batch(), 0.3
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(batch.tokens.shape[1], HIDDEN, generator=generator)
    weight = torch.randn(VOCABULARY.padded_size, HIDDEN, generator=generator)
    references = {
        pair_of(key): tuple(torch.randn(2, generator=generator).double().mul(20).sub(60).tolist())
        for key, _ in answers(batch)
    }
    config = PreferenceConfig(beta=beta, smoothing=smoothing, nll=nll)
    language = LossConfig(modalities={"audio": 0.0}, chunk=chunk)
    objective = DirectPreference(VOCABULARY.modalities, config, language, references)

    exact_states, exact_weight = states.double().requires_grad_(), weight.double().requires_grad_()
    losses, margins, told, tokens = [], [], torch.zeros((), dtype=torch.float64), 0
    for key, two in answers(batch):
        logprobs = []
        for number, places in enumerate(two):
            logits = (exact_states[places] @ exact_weight.t())[:-1]
            labels = batch.tokens[0, places][1:]
            counting = (batch.loss_weight[0, places][:-1] > 0) & (batch.label_modality[0, places][:-1] == 0)
            each = logits.log_softmax(-1).gather(1, labels[:, None])[:, 0] * counting
            logprobs.append(each.sum())
            if number == 0:
                told, tokens = told - each.sum(), tokens + int(counting.sum())
        chosen, rejected = references[pair_of(key)]
        margin = beta * ((logprobs[0] - logprobs[1]) - (chosen - rejected))
        losses.append(-(1 - smoothing) * margin.sigmoid().log() - smoothing * (-margin).sigmoid().log())
        margins.append(margin.item())
    expected = torch.stack(losses).mean() + nll * told / tokens
    expected.backward()

    states.requires_grad_(), weight.requires_grad_()
    found: Losses = {
        LANGUAGE: {
            "total": torch.zeros(()),
            "places": {"cross_entropy": place_losses(states, weight, objective.targets(batch))[None]},
        }
    }
    counts, sums = objective.counts(batch), objective.sums(found, batch)
    loss = objective.loss(found, batch, counts)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in ((states.grad, exact_states.grad), (weight.grad, exact_weight.grad)):
        assert ours is not None and theirs is not None and theirs.abs().max() > 1e-3
        assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()
    terms = objective.averages(sums.tolist(), counts.tolist())
    assert terms[objective.main] == pytest.approx(expected.item(), rel=1e-5)
    assert terms["margin"] == pytest.approx(np.mean(margins), rel=1e-4)
    assert terms["accuracy"] == np.mean(np.array(margins) > 0)
    assert terms["text"] == pytest.approx((told / tokens).item(), rel=1e-5) and "audio" not in terms


def test_the_reward_loss_is_of_the_last_places() -> None:
    batch, objective = a_batch(), BradleyTerry()
    rewards = torch.randn(batch.tokens.shape[1], generator=torch.Generator().manual_seed(1)).requires_grad_()
    found: Losses = {REWARD: {"total": torch.zeros(()), "places": {"reward": rewards[None]}}}
    last = torch.tensor([[places.stop - 1 for places in two] for _, two in answers(batch)])
    exact = rewards.detach().double()[last]
    counts = objective.counts(batch)
    loss = objective.loss(found, batch, counts)
    loss.backward()
    assert loss.item() == pytest.approx((1 + (exact[:, 1] - exact[:, 0]).exp()).log().mean().item(), rel=1e-6)
    assert rewards.grad is not None and sorted(rewards.grad.nonzero()[:, 0].tolist()) == sorted(last.flatten().tolist())
    terms = objective.averages(objective.sums(found, batch).tolist(), counts.tolist())
    assert terms["accuracy"] == (exact[:, 0] > exact[:, 1]).double().mean()


# --- runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pairs(tmp_path_factory.mktemp("pairs") / "corpus")


def config_of(folder: Path, corpus: Path, objective: str, **changes: Any) -> Config:
    settings = {
        "stage__objective": objective,
        "train__steps": STEPS,
        "train__sequence_length": 512,
        "train__validate_every": STEPS,
        "checkpoint__every": 2,
        "optimizer__lr": 3e-3,
        "preference__beta": 1.0,
        "export__huggingface": False,
    }
    if objective == "dpo":
        settings |= {"loss__modalities": {"audio": 0.0}, "preference__smoothing": 0.1, "preference__nll": 0.2}
    config = tiny_config(folder, corpus, **settings | changes)
    config.mixture.sources = {
        "tqta": SourceConfig(layout="preferences", weight=1.0, options={"form": "TQTA"}),
        "aqaa": SourceConfig(layout="preferences", weight=1.0, options={"form": "AQAA", "chunks": [2, 5]}),
    }
    return config


@pytest.fixture(scope="module")
def alone(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """One process, by objective."""
    folder = tmp_path_factory.mktemp("alone")
    return {name: run_config(config_of(folder / name, corpus, name)) for name in ("dpo", "reward")}


TERMS = ("loss", "loss/accuracy", "loss/margin", "loss/chosen", "loss/rejected", "loss/text")
TP2_SP = {"parallel__tensor": 2, "parallel__sequence": True}
PP2 = {"parallel__pipeline": 2, "backbone__tied_embeddings": True}
DP2 = {"parallel__distributed_optimizer": True, "train__micro_batch": 2}
ZERO1 = {"engine__name": "deepspeed", "engine__zero_stage": 1}
ZERO3 = {"engine__name": "deepspeed", "engine__zero_stage": 3}


ROWS = [
    ("dpo", TP2_SP),
    ("dpo", PP2),
    ("dpo", DP2),
    ("dpo", ZERO1),
    ("dpo", ZERO3),
    ("reward", TP2_SP),
    ("reward", PP2),
    ("reward", ZERO1),
]


@pytest.mark.parametrize("objective, changes", ROWS)
def test_the_curve_is_one_on_every_topology(
    objective: str, changes: dict[str, Any], corpus: Path, alone: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    lines = run_config(config_of(tmp_path / "run", corpus, objective, **changes), 2)
    for ours, theirs in zip(lines, alone[objective], strict=True):
        for name in (name for name in TERMS if name in theirs):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-5), (ours["step"], name)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)


def test_pairs_are_learnt(alone: dict[str, list[dict[str, Any]]]) -> None:
    assert alone["dpo"][0]["loss/margin"] == pytest.approx(0, abs=1e-4)
    assert alone["dpo"][-1]["loss/margin"] > 0.1
    assert alone["reward"][-1]["loss"] < alone["reward"][0]["loss"]


def in_small_parts(config_file: str, victim: int, call: str, turn: int, number: int) -> int:
    """`faulty_stage`, where references are measured ten documents at a time."""
    import train.reference

    train.reference.PART = 10
    return faulty_stage(config_file, victim, call, turn, number)


@pytest.mark.parametrize("objective, faults", [("dpo", ("evaluate", "train_step")), ("reward", ("train_step",))])
def test_a_killed_stage_has_the_same_curve(
    objective: str, faults: tuple[str, ...], corpus: Path, alone: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    """Killed as the third of ten parts of the references is measured, or as the fourth step is taken."""
    file = write(config_of(tmp_path / "run", corpus, objective))
    kept: dict[Path, int] = {}
    for call in faults:
        with pytest.raises(RankFailed):
            run_ranks(in_small_parts, 1, file, 0, call, {"evaluate": 3, "train_step": 4}[call], signal.SIGKILL)
        assert all(path.stat().st_mtime_ns == at for path, at in kept.items()), "what was measured is not again"
        kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "run/reference").glob("*.json")}
        assert len(kept) == {"evaluate": 3, "train_step": 11}[call] * (objective == "dpo")  # with about.json
    assert run_ranks(in_small_parts, 1, file, 0, "logits", 1, 0) == [0]
    keys = ("step", "tokens", "grad_norm", *TERMS)
    assert [[line.get(key) for key in keys] for line in metrics(tmp_path / "run")] == [
        [pytest.approx(line[key], rel=1e-6, abs=1e-6) if key in line else None for key in keys]
        for line in alone[objective]
    ]
