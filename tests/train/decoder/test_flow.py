"""The flow against its formulas in float64, and against what must not matter to it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch

from tests.train.decoder.small import small_decoder
from train.models.decoder.flow import Drawn, Flow, draw
from train.models.decoder.layers import mask_of

CONFIG = small_decoder()
IDS = torch.from_numpy(np.random.default_rng(0).integers(0, 96, (2, 20)))
LENGTHS, FRAMES = torch.tensor([20, 15]), torch.tensor([41, 30])
MEL = torch.randn(2, 20, 41, generator=torch.Generator().manual_seed(1)) * mask_of(FRAMES, 41)
NOBODY = torch.zeros(2, 0)


def make_flow() -> Flow:
    torch.manual_seed(0)
    flow = Flow(CONFIG, 96, 5 / 0.12)
    torch.nn.init.normal_(flow.estimator.out.weight, std=0.1)
    return flow


def test_the_loss_is_that_of_the_formula_in_float64() -> None:
    flow, drawn = make_flow(), draw([5, 6], [41, 30], CONFIG)
    asked = []
    estimate = flow.estimate
    flow.estimate = lambda *given: asked.append((given, estimate(*given))) or asked[-1][1]  # type: ignore
    loss = flow(IDS, LENGTHS, NOBODY, MEL, FRAMES, drawn)
    (noisy, _, time, conditions), said = asked[0]
    sigma, total = CONFIG.flow.sigma_min, 0.0
    for row in range(2):
        t, count = float(time[row]), int(FRAMES[row])
        x, z = (part[row].double().numpy()[:, :count] for part in (MEL, drawn.noise))
        np.testing.assert_allclose(noisy[row, :, :count], (1 - (1 - sigma) * t) * z + t * x, atol=1e-6)
        total += ((said[row].detach().double().numpy()[:, :count] - (x - (1 - sigma) * z)) ** 2).sum()
        prompt = int(drawn.prompt[row]) if drawn.conditioned[row] else 0
        assert torch.equal(conditions.prompt[row, :, :prompt], MEL[row, :, :prompt])
        assert not conditions.prompt[row, :, prompt:].any()
    np.testing.assert_allclose(loss.item(), total, rtol=1e-5)


def test_draws_are_a_samples_own_and_as_often_as_they_should_be() -> None:
    seeds = list(range(3000))
    drawn = draw(seeds, [40] * len(seeds), CONFIG)
    alone = draw([7], [40], CONFIG)
    assert drawn.time[7] == alone.time[0] and torch.equal(drawn.noise[7], alone.noise[0])
    assert abs(drawn.conditioned.float().mean() - 0.8) < 0.03
    assert abs((drawn.prompt > 0).float().mean() - 0.5 * 11 / 12) < 0.04 and drawn.prompt.max() == 11  # below 0.3 x 40
    # 1 - cos(u pi/2) is at most 1/2 for u up to 2/3
    assert abs((drawn.time < 0.5).float().mean() - 2 / 3) < 0.03
    assert abs(drawn.noise.std() - 1) < 0.01


def test_what_lies_beside_a_sample_does_not_change_its_loss() -> None:
    flow, drawn = make_flow(), draw([5, 6], [41, 30], CONFIG)
    parts = [
        flow(
            IDS[row : row + 1, : LENGTHS[row]],
            LENGTHS[row : row + 1],
            NOBODY[:1],
            MEL[row : row + 1, :, : FRAMES[row]],
            FRAMES[row : row + 1],
            draw([5 + row], [int(FRAMES[row])], CONFIG),
        )
        for row in range(2)
    ]
    np.testing.assert_allclose(float(flow(IDS, LENGTHS, NOBODY, MEL, FRAMES, drawn)), float(sum(parts)), rtol=1e-5)


def test_codes_are_stretched_linearly_to_the_middles_of_frames() -> None:
    flow = make_flow()
    ramp = torch.arange(20.0)[None, None].expand(1, 20, -1).clone()
    frames = 41
    middles = (np.arange(frames) + 0.5) * 256 / 22_050  # seconds
    wanted = np.clip(middles / (0.12 / 5) - 0.5, 0, 19)
    found = flow.stretched(ramp, torch.tensor([20]), frames)[0, 0]
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    later = flow.stretched(ramp[:, :, 5:], torch.tensor([15]), frames, ahead=1.0)[0, 0]
    np.testing.assert_allclose(
        later[:20],
        np.interp(
            np.arange(20) * 256 / 22_050 / 0.024 + 1.0 + 128 / 22_050 / 0.024 - 0.5, np.arange(15), np.arange(5, 20)
        ),
        atol=1e-4,
    )


def test_euler_steps_follow_the_cosine_schedule_and_the_guidance() -> None:
    """With dx/dt = t given the conditions and 0 without: x = (1 + g) sum t_k (t_k+1 - t_k), in float64."""
    flow = make_flow()
    mask = mask_of(torch.tensor([6]), 6)
    conditions = flow.conditions(IDS[:1], LENGTHS[:1], NOBODY[:1], torch.zeros(1, 20, 6), torch.tensor([6]))
    assert conditions.codes.abs().sum() > 0

    def estimate(x, mask, time, given):
        known = (given.codes.abs().sum((1, 2)) > 0)[:, None, None]
        return (time[:, None, None] * known).expand_as(x)

    flow.estimate = estimate  # type: ignore[method-assign]
    times = [1 - math.cos(k / 5 * math.pi / 2) for k in range(6)]
    wanted = sum(now * (then - now) for now, then in itertools.pairwise(times))
    for guidance in (0.0, 0.7):
        found = flow.integrate(torch.zeros(1, 20, 6), mask, conditions, 5, guidance)
        np.testing.assert_allclose(found, (1 + guidance) * wanted, rtol=1e-5)


def test_a_flow_that_is_learnt_goes_where_it_was_taught() -> None:
    """One sound that stays as it is, whose error falls; what is then integrated is nearer to it than chance is."""
    flow = make_flow()
    optimizer = torch.optim.AdamW(flow.parameters(), 1e-2)
    rng, losses = np.random.default_rng(0), []
    frames = FRAMES[:1]
    mel = torch.linspace(-1.5, 1.5, 20)[None, :, None].expand(1, 20, 41)
    for _ in range(40):
        drawn: Drawn = draw(rng.integers(0, 2**62, 1).tolist(), [41], CONFIG)
        loss = flow(IDS[:1], LENGTHS[:1], NOBODY[:1], mel, frames, drawn) / mel.numel()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss))
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:5])
    conditions = flow.conditions(IDS[:1], LENGTHS[:1], NOBODY[:1], torch.zeros_like(mel), frames)
    noise = torch.randn(mel.shape, generator=torch.Generator().manual_seed(2))
    said = flow.integrate(noise, mask_of(frames, 41), conditions, 10, 0.0)
    assert (said - mel).abs().mean() < 0.85 * (noise - mel).abs().mean()
