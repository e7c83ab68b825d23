"""Advantages, rewards and both losses against their definitions, worked in float64 token by token."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import PPOConfig
from data_pipeline.batch import Batch, collate
from data_pipeline.packing import fill_packs, filler
from tests.data_pipeline.pairs import vocabulary
from train.models.heads.language import LANGUAGE
from train.models.heads.reward import REWARD
from train.models.heads.terms import Losses
from train.models.heads.vocabulary_loss import place_losses
from train.objectives.ppo import ClippedPolicy, ClippedValue, ProximalPolicy, Reading
from train.reinforcement.advantages import generalised_advantages, learnt_of, token_rewards
from train.reinforcement.rollout import Rollout, figures_of, learnable, reading

VOCABULARY = vocabulary()
CONFIG = PPOConfig(kl=0.3, discount=0.9, trace=0.8, unended=2.0)
HIDDEN = 8


def rollouts(count: int = 5, seed: int = 0) -> list[Rollout]:
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        length = int(rng.integers(1, 7))
        numbers = [tuple(rng.normal(size=length).tolist()) for _ in range(4)]
        found.append(
            Rollout(
                key=f"s/0/d{number}/0",
                prompt=tuple(rng.integers(0, 300, 4).tolist()),
                answer=tuple(rng.integers(0, 300, length).tolist()),
                rest=(1, 2)[: int(rng.integers(0, 3))],
                ended=number % 2 == 0,
                text="",
                generator=numbers[0],
                policy=tuple(-abs(x) for x in numbers[1]),
                reference=tuple(-abs(x) for x in numbers[2]),
                values=numbers[3],
                reward=float(rng.normal()),
            )
        )
    return found


@given(
    st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=1, max_size=8), st.floats(0, 1), st.floats(0, 1)
)
def test_advantages_are_the_sum_of_later_surprises(
    steps: list[tuple[float, float]], discount: float, trace: float
) -> None:
    rewards, values = (np.array(column) for column in zip(*steps, strict=True))
    after = np.append(values[1:], 0.0)
    surprises = rewards + discount * after - values
    for t, found in enumerate(generalised_advantages(rewards, values, discount, trace)):
        wanted = sum((discount * trace) ** k * surprise for k, surprise in enumerate(surprises[t:]))
        assert found == pytest.approx(wanted, abs=1e-9)


def test_a_full_trace_compares_all_that_came_with_what_was_foreseen() -> None:
    rewards, values = np.array([1.0, -2.0, 4.0]), np.array([0.5, 0.25, -1.0])
    assert generalised_advantages(rewards, values, 1.0, 1.0).tolist() == [3 - 0.5, 2 - 0.25, 4 + 1.0]


def test_rewards_are_the_kl_penalty_and_at_the_last_token_the_models() -> None:
    policy, reference = np.array([-1.0, -2.0, -0.5]), np.array([-1.5, -1.0, -0.5])
    for ended, last in ((True, 7.0), (False, 5.0)):
        found = token_rewards(policy, reference, 7.0, 0.1, ended=ended, unended=2.0)
        assert found == pytest.approx([-0.05, 0.1, last])
    assert policy.tolist() == [-1.0, -2.0, -0.5], "what was measured stays as it is"


def test_advantages_are_normalised_over_the_round_and_returns_are_not() -> None:
    rng = np.random.default_rng(1)
    rewards, values = ([rng.normal(3, 2, n) for n in (4, 1, 6)] for _ in range(2))
    advantages, returns = learnt_of(rewards, values, CONFIG)
    plain = [generalised_advantages(r, v, 0.9, 0.8) for r, v in zip(rewards, values, strict=True)]
    whole = np.concatenate(plain)
    assert np.concatenate(advantages) == pytest.approx((whole - whole.mean()) / whole.std())
    for found, advantage, value in zip(returns, plain, values, strict=True):
        assert found == pytest.approx(advantage + value)


# --- losses ---------------------------------------------------------------------------------------------------------


def a_batch(said: list[Rollout]) -> Batch:
    """Two packs, and one of padding alone."""
    packs = fill_packs(learnable(said, VOCABULARY, CONFIG), 40, 0)
    return collate([*packs, filler(40, 0)])


def places_of(batch: Batch, said: list[Rollout]) -> dict[str, slice]:
    """Where in the batch's row each answer's tokens are predicted."""
    found, start = {}, 0
    by_key = {rollout.key: rollout for rollout in said}
    for pack in fill_packs(learnable(said, VOCABULARY, CONFIG), 40, 0):
        begin = start
        for key, length in zip(pack.keys, pack.lengths, strict=False):
            rollout = by_key[key]
            found[key] = slice(begin + rollout.places.start, begin + rollout.places.stop)
            begin += length
        start += 40
    assert len(found) == len(said)
    return found


def language(batch: Batch, states: torch.Tensor, weight: torch.Tensor, objective: ClippedPolicy) -> Losses:
    cross_entropy = place_losses(states, weight, objective.targets(batch))[None]
    return {LANGUAGE: {"total": torch.zeros(()), "places": {"cross_entropy": cross_entropy}}}


@pytest.mark.parametrize("chunk", [0, 3])
def test_the_clipped_objective_is_its_formula_value_and_gradient(chunk: int) -> None:
    said = rollouts()
    batch, objective = a_batch(said), ClippedPolicy(0.2, chunk)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(batch.tokens.shape[1], HIDDEN, generator=generator)
    weight = torch.randn(VOCABULARY.padded_size, HIDDEN, generator=generator) / 4
    exact, head = states.double().requires_grad_(), weight.double().requires_grad_()

    # Log-probabilities of the round's beginning: close to today's, so that some tokens are clipped and some are not.
    logits = exact @ head.t()
    near = {}
    for number, (key, places) in enumerate(places_of(batch, said).items()):
        labels = torch.tensor(next(rollout.answer for rollout in said if rollout.key == key))
        log_probs = logits[places].log_softmax(1).gather(1, labels[:, None])[:, 0]
        near[key] = log_probs, torch.linspace(-0.5, 0.5, len(labels), dtype=torch.float64) + 0.1 * (number % 3)
    said = [Rollout(**{**vars(one), "policy": tuple((near[one.key][0] - near[one.key][1]).tolist())}) for one in said]
    batch = a_batch(said)
    advantages, _ = learnt_of(
        [
            token_rewards(np.array(one.policy), np.array(one.reference), one.reward, 0.3, ended=one.ended, unended=2.0)
            for one in said
        ],
        [np.array(one.values) for one in said],
        CONFIG,
    )
    losses, clipped, drift, tokens = [], 0, 0.0, 0
    for one, advantage in zip(said, advantages, strict=True):
        log_probs, _ = near[one.key]
        for log_prob, old, a in zip(log_probs, one.policy, advantage.tolist(), strict=True):
            q = (log_prob - old).exp()
            losses.append(-min(q * a, q.clamp(0.8, 1.2) * a, key=lambda value: value.item()))
            clipped += (a > 0 and q.item() > 1.2) or (a < 0 and q.item() < 0.8)
            drift += q.item() - 1 - (log_prob.item() - old)
            tokens += 1
    wanted = torch.stack(losses).mean()
    wanted.backward()

    states.requires_grad_(), weight.requires_grad_()
    found = language(batch, states, weight, objective)
    counts = objective.counts(batch)
    loss = objective.loss(found, batch, counts)
    loss.backward()
    assert counts.tolist() == [tokens] * 3
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-4)
    for ours, theirs in ((states.grad, exact.grad), (weight.grad, head.grad)):
        assert ours is not None and theirs is not None and theirs.abs().max() > 1e-3
        assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()
    sums = objective.sums(found, batch).tolist()
    assert 0 < clipped < tokens
    assert sums == pytest.approx([wanted.item() * tokens, clipped, drift], rel=1e-4)


@pytest.mark.parametrize("clip", [None, 0.2])
def test_the_value_loss_is_its_formula_value_and_gradient(clip: float | None) -> None:
    said = rollouts(seed=2)
    batch, objective = a_batch(said), ClippedValue(clip)
    values = torch.randn(batch.tokens.shape[1], generator=torch.Generator().manual_seed(3)).requires_grad_()
    exact = values.detach().double().requires_grad_()
    _, returns = learnt_of(
        [
            token_rewards(np.array(one.policy), np.array(one.reference), one.reward, 0.3, ended=one.ended, unended=2.0)
            for one in said
        ],
        [np.array(one.values) for one in said],
        CONFIG,
    )
    places, losses = places_of(batch, said), []
    for one, told in zip(said, returns, strict=True):
        for value, old, wanted in zip(exact[places[one.key]], one.values, told.tolist(), strict=True):
            errors = [(value - wanted) ** 2]
            if clip is not None:
                errors.append((old + max(-clip, min(clip, value - old)) - wanted) ** 2)
            losses.append(max(errors, key=lambda error: float(error)) / 2)
    expected = torch.stack([torch.as_tensor(loss) for loss in losses]).mean()
    expected.backward()
    found: Losses = {REWARD: {"total": torch.zeros(()), "places": {"reward": values[None]}}}
    counts = objective.counts(batch)
    loss = objective.loss(found, batch, counts)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert values.grad is not None and exact.grad is not None and values.grad.abs().max() > 0
    assert values.grad.numpy() == pytest.approx(exact.grad.float().numpy(), rel=1e-4, abs=1e-7)
    terms = objective.sums(found, batch)[0].item() / counts[0].item()
    assert terms == pytest.approx(expected.item(), rel=1e-5)


def test_both_losses_are_named_and_one_after_the_other() -> None:
    both = ProximalPolicy(CONFIG)
    averages = both.averages([2.0, 1.0, 0.5, 8.0, 3.0], [4.0] * 5)
    assert averages == {"policy": 0.5, "clipped": 0.25, "drift": 0.125, "value": 2.0, "value_clipped": 0.75}
    assert both.main == "policy" and len(both.counts(a_batch(rollouts()))) == both.terms == 5


def test_reading_gives_each_number_where_it_was_asked_for() -> None:
    said = rollouts(seed=4)
    firsts = np.cumsum([0, *(len(one.answer) for one in said)]).tolist()
    terms = firsts[-1]
    samples = [reading(one, VOCABULARY, one.read_at(first)) for one, first in zip(said, firsts, strict=False)]
    batch = collate([*fill_packs(samples, 40, 0), filler(40, 0)])
    row = torch.arange(batch.tokens.shape[1], dtype=torch.float32)[None]
    found: Losses = {LANGUAGE: {"total": torch.zeros(()), "places": {"cross_entropy": -row}}}
    told = Reading(LANGUAGE, terms).sums(found, batch)
    places = places_of(a_batch(said), said)
    assert told.tolist() == [place for one in said for place in range(*places[one.key].indices(10_000))]
    last = [reading(one, VOCABULARY, one.read_last(number)) for number, one in enumerate(said)]
    batch = collate(fill_packs(last, 40, 0))
    rewards: Losses = {REWARD: {"total": torch.zeros(()), "places": {"reward": row[:, : batch.tokens.shape[1]]}}}
    ends = (batch.cu_seqlens[1:] - 1).tolist()
    assert set(Reading(REWARD, len(said)).sums(rewards, batch).tolist()) <= set(ends)


def test_the_figures_of_a_round_are_means_of_what_was_said() -> None:
    said = rollouts(seed=5)
    found = figures_of(said, CONFIG)
    assert found["ppo/reward"] == pytest.approx(sum(one.reward for one in said) / 5)
    assert found["ppo/kl"] == pytest.approx(sum(sum(one.policy) - sum(one.reference) for one in said) / 5)
    gaps = [abs(a - b) for one in said for a, b in zip(one.policy, one.generator, strict=True)]
    assert found["ppo/difference"] == pytest.approx(sum(gaps) / len(gaps))
    assert found["ppo/difference_max"] == max(gaps) and found["ppo/ended"] == 0.6
