"""A student and its teacher: nearer than without it, and on every topology alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.compose import to_yaml
from configs.schema import Config, DistillationConfig, LossConfig, Made, SourceConfig, StageKind
from data_pipeline.answers import TARGET
from data_pipeline.batch import Batch, TargetRow, collate
from data_pipeline.corpus import Corpus
from data_pipeline.loader import make_loader
from tests.data_pipeline.synthetic import make_corpus, make_vocabulary
from tests.data_pipeline.test_text_to_code import save_model
from tests.ranks import run_ranks
from tests.train.matrix import differences
from tests.train.runs import run_config, tiny_config
from train.objectives.build import objective_of
from train.objectives.distillation import Distillation
from train.objectives.next_token import NextToken

STEPS = 6
VOCABULARY = make_vocabulary()


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, and what a random teacher says about it."""
    room = tmp_path_factory.mktemp("room")
    make_corpus(room / "corpus", train_documents=16, valid_documents=4)
    save_model(room / "teacher", VOCABULARY)
    config = student(room, "asked")
    config.stage.objective, config.stage.kind, config.stage.weights = (
        "pretrain",
        StageKind.generate,
        str(room / "teacher"),
    )
    config.generation.makes, config.generation.top_k, config.generation.batch = Made.teacher, 8, 4
    (room / "asked").mkdir()
    (room / "asked" / "config.yaml").write_text(to_yaml(config))
    assert run_ranks(generation, 1, str(room / "asked" / "config.yaml"), timeout=240) == [0]
    return room


def generation(file: str) -> int:
    from train.generation.__main__ import main

    return main([file])


def student(room: Path, name: str, **changes: Any) -> Config:
    config = tiny_config(room / name, room / "corpus", **changes)
    config.mixture.sources = {
        "tts": SourceConfig(layout="tts", weight=1.0, options={"text_weight": 0.5}),
        "continuation": SourceConfig(layout="continuation", weight=1.0),
    }
    config.stage.objective = "distill"
    config.distillation.teacher, config.distillation.temperature = str(room / "asked" / "corpus"), 1.5
    config.loss.modalities, config.loss.chunk = {"semantic": 2.0}, 20
    return config


@pytest.fixture(scope="module")
def alone(room: Path) -> list[dict[str, Any]]:
    """The curve of a single process."""
    return run_config(student(room, "alone", train__steps=STEPS))


@pytest.mark.parametrize(
    ("name", "processes", "changes"),
    [
        ("tp2_pp2", 4, {"parallel__tensor": 2, "parallel__pipeline": 2}),
        ("zero1", 2, {"engine__name": "deepspeed", "engine__zero_stage": 1}),
    ],
)
def test_a_student_learns_the_same_on_every_topology(
    room: Path, alone: list[dict[str, Any]], name: str, processes: int, changes: dict[str, Any]
) -> None:
    curve = run_config(student(room, name, train__steps=STEPS, **changes), processes)
    loss, norm = differences(curve, alone)
    assert all(key in alone[0] for key in ("loss/kl", "loss/kl_text", "loss/kl_audio")) and alone[0]["loss/kl"] > 0.1
    assert alone[0]["loss/taught"] == 1.0
    assert loss < 1e-4 and norm < 1e-3


def test_a_student_comes_nearer_to_its_teacher_than_one_of_the_texts_alone(room: Path) -> None:
    """The same steps on the same data; what differs is whether the divergence is learnt, or told alone."""
    curves = [
        run_config(student(room, name, train__steps=20, optimizer__lr=5e-3, distillation__cross_entropy=share))
        for name, share in (("taught", 0.1), ("control", 1.0))
    ]
    first, (taught, control) = curves[0][0]["loss/kl"], (curve[-1]["loss/kl"] for curve in curves)
    assert curves[1][0]["loss/kl"] == pytest.approx(first, rel=1e-6)
    assert taught < 0.95 * control and taught < 0.95 * first


# --- the objective ----------------------------------------------------------------------------------------------------


def a_batch(room: Path) -> tuple[Config, Batch]:
    config = student(room, "unused")
    loader = make_loader(config, Corpus.open(room / "corpus"), split="train", rank=0, world=1)
    batch = collate(loader.next_step())
    loader.close()
    return config, batch


def test_what_is_minimised_is_the_weighted_mean_of_both(room: Path) -> None:
    """Against a float64 sum over all places, with logits of the whole vocabulary, from the batch's own target."""
    from train.models.heads.distillation_loss import distillation_loss
    from train.models.heads.vocabulary_loss import vocabulary_loss

    config, batch = a_batch(room)
    objective = objective_of(config, Corpus.open(room / "corpus"))
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(batch.tokens.shape[1], 8, generator=rng)
    weight = torch.randn(VOCABULARY.padded_size, 8, generator=rng)
    targets = objective.targets(batch)
    assert targets.taught is not None
    total, cross_entropy, z = vocabulary_loss(hidden, weight, targets)
    divergence, each = distillation_loss(hidden, weight, targets.taught)
    places = {"cross_entropy": cross_entropy[None], "z": z[None], "kl": each[None]}
    losses: Any = {"lm": {"total": total + divergence, "places": places}}
    counts = objective.counts(batch)
    found = objective.averages(objective.sums(losses, batch).tolist(), counts.tolist())

    logits = hidden.double() @ weight.double().t()
    minimised, weights, kl, taught = 0.0, 0.0, 0.0, 0.0
    for place in torch.nonzero(batch.loss_weight[0]).flatten().tolist():
        label = int(batch.labels[0, place])
        (due,) = [table for table in VOCABULARY.tables if label in table]
        q = (logits[place, due.start : due.stop] / 1.5).softmax(0)
        ids = batch.targets[TARGET].values[0, place, :-1] - due.start
        p = batch.targets[TARGET].weight[0, place].double()
        known = p[:-1] > 0
        one = float((p[:-1][known] * (p[:-1][known] / q[ids[known]]).log()).sum())
        rest = 1 - float(q[ids[known]].sum())
        one += float(p[-1] * (p[-1] / rest).log()) if p[-1] > 0 else 0.0
        w = float(batch.loss_weight[0, place])
        v = w * (2.0 if batch.label_modality[0, place] == 2 else 1.0)
        plain = -float(logits[place].log_softmax(0)[label])
        minimised, weights = minimised + v * (0.5 * plain + 0.5 * 1.5**2 * one), weights + v
        kl, taught = kl + w * one, taught + w
    assert found["objective"] == pytest.approx(minimised / weights, rel=1e-4)
    assert objective.loss(losses, batch, counts).item() == pytest.approx(minimised / weights, rel=1e-4)
    assert found["kl"] == pytest.approx(kl / taught, rel=1e-4) and found["taught"] == 1.0


def test_without_answers_there_is_nothing_to_follow(room: Path) -> None:
    """As in a pack of padding, or of samples that the teacher did not see."""
    _, batch = a_batch(room)
    objective = Distillation(NextToken(VOCABULARY.modalities, LossConfig()), DistillationConfig(), VOCABULARY)
    row = batch.targets[TARGET]
    silent = replace(batch, targets={TARGET: TargetRow(row.values, torch.zeros_like(row.weight))})
    for empty in (replace(batch, targets={}), silent):
        targets = objective.targets(empty)
        assert targets.taught is not None and all(not len(part.places) for part in targets.taught.ranges)
        assert objective.counts(empty)[-2:].tolist() == [0.0, 0.0]
        terms = objective.averages([1.0] * objective.terms, objective.counts(empty).tolist())
        assert "kl" not in terms and terms["taught"] == 0.0


def test_answers_come_with_the_samples_in_every_epoch(room: Path) -> None:
    config = student(room, "unused", train__global_batch=4)
    loader = make_loader(config, Corpus.open(room / "corpus"), split="train", rank=0, world=1)
    epochs = set()
    for _ in range(30):
        for pack in loader.next_step():
            epochs |= {key.split("/")[1] for key in pack.keys}
            asked = pack.loss_weight > 0
            assert np.array_equal(pack.targets[TARGET].weight.sum(1) > 0.5, asked) or not asked.any()
    loader.close()
    assert len(epochs) > 1
