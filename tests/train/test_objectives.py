"""Loss terms and the learning-rate schedule against hand-computed values."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from configs.schema import LossConfig, OptimizerConfig, Schedule
from data_pipeline.batch import Batch
from data_pipeline.chunks import chunk_of
from data_pipeline.layouts import find_layout
from runtime.exits import BadInput
from train.models.heads.terms import Losses
from train.objectives.build import check_objective
from train.objectives.next_token import NextToken, told_apart
from train.schedule import learning_rate


def a_batch() -> Batch:
    row = torch.arange(4)[None]
    return Batch(
        tokens=row,
        labels=row,
        positions=row,
        loss_weight=torch.tensor([[1.0, 0.5, 0.0, 1.0]]),
        label_modality=torch.tensor([[0, 1, 1, 2]], dtype=torch.uint8),
        cu_seqlens=torch.tensor([0, 4], dtype=torch.int32),
        longest=4,
        chunks=(chunk_of([4], 0, 4),),
    )


MODALITIES = ("text", "linguistic", "semantic")


def losses_of(batch: Batch, cross_entropy: list[float], z: list[float], total: float) -> Losses:
    places = {"cross_entropy": torch.tensor([cross_entropy]), "z": torch.tensor([z])}
    return {"lm": {"total": torch.tensor(total, requires_grad=True), "places": places}}


def test_losses_are_weighted_and_split_by_modality() -> None:
    batch, objective = a_batch(), NextToken(MODALITIES)
    losses = losses_of(batch, [2.0, 4.0, 100.0, 1.0], [0.0] * 4, 5.0)
    counts = objective.counts(batch)
    assert counts.tolist() == [1.0, 0.5, 1.0, 2.5, 2.5]
    assert objective.sums(losses, batch).tolist() == [2.0, 2.0, 1.0, 0.0, 5.0]
    assert objective.loss(losses, counts).item() == pytest.approx(2.0)
    terms = objective.averages([2.0, 2.0, 1.0, 0.0, 5.0], counts.tolist())
    assert terms == {"lm": 2.0, "audio": 2.0, "text": 2.0, "linguistic": 4.0, "semantic": 1.0}
    targets = objective.targets(batch)
    assert targets.weights.tolist() == [[1.0, 0.5, 0.0, 1.0]]
    assert targets.places is not None and targets.places.tolist() == [0, 1, 3]


def test_a_modality_that_did_not_occur_has_no_term() -> None:
    terms = NextToken(("text", "semantic")).averages([3.0, 0.0, 0.0, 3.0], [1.0, 0.0, 1.0, 1.0])
    assert terms == {"lm": 3.0, "text": 3.0}


def test_losses_of_text_and_audio_are_told_apart_by_source() -> None:
    """Places 0 and 1 are of the first source, 2 and 3 of the second, whose place 2 has no loss."""
    batch = replace(a_batch(), sources=torch.tensor([[0, 0, 1, 1]], dtype=torch.uint8))
    objective = NextToken(MODALITIES, sources=("chat", "speech.tts"))
    counts = objective.counts(batch)
    assert counts.tolist() == [1.0, 0.5, 1.0, 2.5, 1.0, 0.5, 0.0, 1.0, 2.5] and objective.terms == len(counts)
    sums = objective.sums(losses_of(batch, [2.0, 4.0, 100.0, 1.0], [0.0] * 4, 5.0), batch)
    assert sums.tolist() == [2.0, 2.0, 1.0, 0.0, 2.0, 2.0, 0.0, 1.0, 5.0]
    terms = objective.averages(sums.tolist(), counts.tolist())
    of_sources = {name: value for name, value in terms.items() if "/" in name}
    assert of_sources == {"chat/text": 2.0, "chat/audio": 4.0, "speech.tts/audio": 1.0}
    assert {name: value for name, value in terms.items() if "/" not in name} == {
        "lm": 2.0, "audio": 2.0, "text": 2.0, "linguistic": 4.0, "semantic": 1.0
    }  # fmt: skip


def test_one_source_alone_is_not_told_apart() -> None:
    assert told_apart(("text",)) == () and told_apart(("asr", "tts")) == ("asr", "tts")
    assert told_apart(tuple(map(str, range(300)))) == ()


def test_fine_tuning_wants_a_layout_of_chats() -> None:
    chat, text = find_layout("chat", {}), find_layout("text", {})
    check_objective("sft", {"a": text, "b": chat})
    check_objective("pretrain", {"a": text})
    with pytest.raises(BadInput, match=r"objective=sft: no source of the mixture has a layout of chats .*, only text;"):
        check_objective("sft", {"a": text, "b": text})


def test_modality_weights_make_a_weighted_mean_and_leave_the_reports_alone() -> None:
    """The sum of weight x loss over the sum of weights, as torch's cross entropy has it with class weights."""
    batch = a_batch()
    config = LossConfig(modalities={"audio": 0.5, "semantic": 2.0}, terms={"lm": 3.0}, z=0.1)
    objective = NextToken(MODALITIES, config)
    assert objective.targets(batch).weights.tolist() == [[1.0, 0.25, 0.0, 2.0]]
    each, z = [2.0, 4.0, 100.0, 1.0], [1.0, 2.0, 50.0, 3.0]
    total = 1.0 * (2.0 + 0.1) + 0.25 * (4.0 + 0.2) + 2.0 * (1.0 + 0.3)
    losses = losses_of(batch, each, z, total)
    counts, sums = objective.counts(batch), objective.sums(losses, batch)
    assert counts[-1] == 3.25
    loss = objective.loss(losses, counts)
    assert loss.item() == pytest.approx(3.0 * total / 3.25)
    terms = objective.averages(sums.tolist(), counts.tolist())
    plain = {"lm": 2.0, "audio": 2.0, "text": 2.0, "linguistic": 4.0, "semantic": 1.0}
    assert terms == pytest.approx({**plain, "z": 5.0 / 2.5, "objective": loss.item()})


@pytest.mark.parametrize("factor", [0.5, 4.0])
def test_equal_weights_of_all_modalities_change_nothing(factor: float) -> None:
    batch, plain = a_batch(), NextToken(MODALITIES)
    scaled = NextToken(MODALITIES, LossConfig(modalities={"text": factor, "audio": factor}))
    share = scaled.targets(batch).weights / scaled.counts(batch)[-1]
    assert torch.allclose(share, plain.targets(batch).weights / plain.counts(batch)[-1])


@pytest.mark.parametrize("weights", [{"music": 1.0}, {"text": 0.0, "audio": 0.0}])
def test_weights_that_mean_nothing_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(BadInput, match=r"loss\.modalities"):
        NextToken(MODALITIES, LossConfig(modalities=weights))


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        (Schedule.cosine, 1, 0.5),  # warm-up of two steps
        (Schedule.cosine, 2, 1.0),
        (Schedule.cosine, 7, 0.55),  # half way down to the floor of 0.1
        (Schedule.cosine, 12, 0.1),
        (Schedule.linear, 7, 0.55),
        (Schedule.linear, 12, 0.1),
        (Schedule.constant, 12, 1.0),
    ],
)
def test_learning_rate(schedule: Schedule, step: int, expected: float) -> None:
    config = OptimizerConfig(lr=1.0, warmup_steps=2, floor=0.1, schedule=schedule)
    assert math.isclose(learning_rate(config, step, 12), expected, rel_tol=1e-9)


def test_cosine_is_the_cosine() -> None:
    config = OptimizerConfig(lr=2e-5, warmup_steps=0, floor=0.25, schedule=Schedule.cosine)
    for step in range(1, 11):
        exact = 5e-6 + (2e-5 - 5e-6) * (1 + math.cos(math.pi * step / 10)) / 2
        assert math.isclose(learning_rate(config, step, 10), exact, rel_tol=1e-12)
