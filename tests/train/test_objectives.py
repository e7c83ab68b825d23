"""Loss terms and the learning-rate schedule against hand-computed values."""

from __future__ import annotations

import math

import pytest
import torch

from configs.schema import OptimizerConfig, Schedule
from data_pipeline.batch import Batch
from train.objectives.pretrain import NextToken
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
    )


def test_losses_are_weighted_and_split_by_modality() -> None:
    batch, objective = a_batch(), NextToken(("text", "linguistic", "semantic"))
    losses = torch.tensor([[2.0, 4.0, 100.0, 1.0]])
    assert objective.counts(batch).tolist() == [1.0, 0.5, 1.0]
    assert objective.sums(losses, batch).tolist() == [2.0, 2.0, 1.0]
    assert objective.total(losses, batch).item() == 5.0
    terms = objective.averages([2.0, 2.0, 1.0], [1.0, 0.5, 1.0])
    assert terms == {"lm": 2.0, "audio": 2.0, "text": 2.0, "linguistic": 4.0, "semantic": 1.0}


def test_a_modality_that_did_not_occur_has_no_term() -> None:
    assert NextToken(("text", "semantic")).averages([3.0, 0.0], [1.0, 0.0]) == {"lm": 3.0, "text": 3.0}


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
