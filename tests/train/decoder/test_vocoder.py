"""The adversarial step: one backward pass gives each side the gradients that two would."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch

from data_pipeline.batch import Waves
from tests.train.decoder.small import small_decoder
from train.models.decoder.learning import TrainedVocoder, VocoderTask
from train.objectives.decoding import Vocoding

CONFIG = small_decoder()
WAVES = Waves(
    samples=torch.randn(2, 4000, generator=torch.Generator().manual_seed(0)) * 0.1,
    lengths=torch.tensor([4000, 1500]),
    speakers=torch.zeros(2, 0),
    seeds=torch.tensor([1, 2]),
    places=torch.zeros(2, 1, dtype=torch.int64),
)
TASK = VocoderTask(torch.tensor([700, 0]))


def make_model() -> TrainedVocoder:
    torch.manual_seed(0)
    return TrainedVocoder(CONFIG)


def test_each_side_gets_the_gradient_of_its_own_loss_alone() -> None:
    model, objective = make_model(), Vocoding(CONFIG)
    counts = torch.full((4,), 2.0, dtype=torch.float64)
    objective.loss(model(WAVES, TASK), cast(Any, None), counts).backward()
    together = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    real = model._segments(WAVES, TASK.starts)
    made = model.generator(model.mel(real))
    judged = zip(model.judges(real), model.judges(made.detach()), strict=True)
    model.zero_grad()
    sum(((1 - a.score) ** 2 + b.score**2).flatten(1).mean(1).sum() for a, b in judged).div(2).backward()
    for name, parameter in model.judges.named_parameters():
        torch.testing.assert_close(together[f"judges.{name}"], parameter.grad, rtol=1e-4, atol=1e-7)

    model.zero_grad()
    pairs = list(zip(model.judges(real), model.judges(made), strict=True))
    loss = sum(((1 - b.score) ** 2).flatten(1).mean(1).sum() for _, b in pairs)
    for a, b in pairs:
        for own, other in zip(a.features, b.features, strict=True):
            loss = loss + 2.0 * (own.detach() - other).abs().flatten(1).mean(1).sum()
    loss = loss + 45.0 * (model.mel(made) - model.mel(real)).abs().flatten(1).mean(1).sum()
    (loss / 2).backward()
    for name, parameter in model.generator.named_parameters():
        torch.testing.assert_close(together[f"generator.{name}"], parameter.grad, rtol=1e-3, atol=1e-6)


def test_segments_lie_where_they_should_with_silence_after_a_short_sound() -> None:
    found = make_model()._segments(WAVES, TASK.starts)
    assert found.shape == (2, 8 * 256)
    assert torch.equal(found[0], WAVES.samples[0, 700 : 700 + 2048])
    assert torch.equal(found[1, :1500], WAVES.samples[1, :1500]) and not found[1, 1500:].any()


def test_a_frame_is_decided_within_the_vocoders_reach() -> None:
    vocoder = make_model().generator
    mel = torch.randn(1, 20, 60, generator=torch.Generator().manual_seed(3))
    changed = mel.clone()
    changed[:, :, 30] += 1.0
    with torch.no_grad():
        moved = (vocoder(mel) - vocoder(changed))[0].abs().view(60, 256).amax(1).numpy()
    touched = np.flatnonzero(moved > 1e-7)
    assert touched.min() >= 30 - vocoder.reach and touched.max() <= 30 + vocoder.reach and 30 in touched
