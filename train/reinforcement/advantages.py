"""From what was said of an answer's tokens to what is learnt of them, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from configs.schema import PPOConfig


def token_rewards(
    policy: np.ndarray, reference: np.ndarray, reward: float, kl: float, *, ended: bool, unended: float
) -> np.ndarray:
    """Rewards of the tokens of one answer [n]: -kl times log p - log ref, of `policy` and `reference` [n], and at the
    last token the reward model's, less `unended` where nothing `ended` it."""
    rewards = -kl * (np.asarray(policy, np.float64) - np.asarray(reference, np.float64))
    rewards[-1] += reward - (0.0 if ended else unended)
    return rewards


def generalised_advantages(rewards: np.ndarray, values: np.ndarray, discount: float, trace: float) -> np.ndarray:
    """Advantages [n] of one answer's tokens by their rewards and values [n]; nothing comes after the last (Schulman et
    al., 1506.02438, equation 16)."""
    advantages, after, value_after = np.zeros(len(rewards)), 0.0, 0.0
    for t in reversed(range(len(rewards))):
        surprise = rewards[t] + discount * value_after - values[t]
        after = advantages[t] = surprise + discount * trace * after
        value_after = values[t]
    return advantages


def learnt_of(
    rewards: Sequence[np.ndarray], values: Sequence[np.ndarray], config: PPOConfig
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Advantages and returns of a round's answers: the former with mean 0 and variance 1 over all of its tokens."""
    advantages = [
        generalised_advantages(given, value, config.discount, config.trace)
        for given, value in zip(rewards, values, strict=True)
    ]
    returns = [advantage + value for advantage, value in zip(advantages, values, strict=True)]
    everything = np.concatenate(advantages)
    mean, deviation = everything.mean(), everything.std()
    return [(advantage - mean) / (deviation + 1e-8) for advantage in advantages], returns
