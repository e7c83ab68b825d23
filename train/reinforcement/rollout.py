"""One answer of the policy with what four models say of it, and the samples that it becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from configs.schema import PPOConfig
from data_pipeline.batch import Sample, Target
from data_pipeline.vocabulary import Vocabulary
from train.objectives.ppo import NUMBERS, READ
from train.reinforcement.advantages import learnt_of, token_rewards


@dataclass(frozen=True)
class Rollout:
    """Ids of a question, its answer of n tokens, and what the layout writes behind it, with the end of an answer that
    was cut. text: the answer's words. generator: log-probabilities of its tokens by the engine that drew them; policy,
    reference: by the trainer's own models; values: the critic's before each token [n]. reward: the reward model's."""

    key: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    rest: tuple[int, ...]
    ended: bool
    text: str
    generator: tuple[float, ...]
    policy: tuple[float, ...] = ()
    reference: tuple[float, ...] = ()
    values: tuple[float, ...] = ()
    reward: float = 0.0

    @property
    def places(self) -> slice:
        """Of its sequence, those that predict a token of the answer."""
        return slice(len(self.prompt) - 1, len(self.prompt) - 1 + len(self.answer))

    def sample(self, vocabulary: Vocabulary, targets: Mapping[str, Target]) -> Sample:
        """The whole sequence; every token of the answer weighs one, and nothing else does."""
        tokens = np.array([*self.prompt, *self.answer, *self.rest], np.int64)
        weights = np.zeros(len(tokens), np.float32)
        weights[len(self.prompt) : len(self.prompt) + len(self.answer)] = 1
        return Sample(
            tokens=tokens,
            loss_weight=weights,
            modality=vocabulary.modality_of(tokens),
            group=np.arange(len(tokens), dtype=np.int32),
            key=self.key,
            targets=targets,
        )

    def read_at(self, first: int) -> Target:
        """The target READ for a number of each token of the answer, numbered from `first`."""
        return self._read(self.places, first, len(self.answer))

    def read_last(self, number: int) -> Target:
        """The target READ for one number of the whole sequence, at its last place."""
        return self._read(slice(self.length - 1, self.length), number, 1)

    @property
    def length(self) -> int:
        """Tokens of the whole sequence."""
        return len(self.prompt) + len(self.answer) + len(self.rest)

    def _read(self, places: slice, first: int, count: int) -> Target:
        values, weight = np.zeros(self.length, np.int64), np.zeros(self.length, np.float32)
        values[places], weight[places] = np.arange(first, first + count), 1
        return Target(values, weight)


def learnable(rollouts: Sequence[Rollout], vocabulary: Vocabulary, config: PPOConfig) -> list[Sample]:
    """What a step learns of each answer of a round: its samples with the target NUMBERS."""
    rewards = [_rewards(rollout, config) for rollout in rollouts]
    values = [np.asarray(rollout.values) for rollout in rollouts]
    advantages, returns = learnt_of(rewards, values, config)
    samples = []
    for rollout, advantage, value in zip(rollouts, advantages, returns, strict=True):
        row, weight = (np.zeros((rollout.length, 4), np.float32) for _ in range(2))
        row[rollout.places] = np.stack([np.asarray(rollout.policy), advantage, value, np.asarray(rollout.values)], 1)
        weight[rollout.places] = 1
        samples.append(rollout.sample(vocabulary, {NUMBERS: Target(row, weight)}))
    return samples


def reading(rollout: Rollout, vocabulary: Vocabulary, target: Target) -> Sample:
    """The same with the target READ."""
    return rollout.sample(vocabulary, {READ: target})


def figures_of(rollouts: Sequence[Rollout], config: PPOConfig) -> dict[str, float]:
    """What a round was like, by the names that a step's record has for it.

    reward: the reward model's, a mean over answers; kl: from the policy to the reference, in nats an answer, estimated
    by its own tokens; entropy: of the policy, in nats a token, likewise; length: tokens of an answer; ended: share of
    answers that were not cut. difference, difference_max: mean and largest absolute difference between generator's and
    trainer's log-probabilities of a token. explained: the share of the returns' variance that the critic foresaw.
    """
    policy = np.concatenate([rollout.policy for rollout in rollouts])
    difference = np.abs(policy - np.concatenate([rollout.generator for rollout in rollouts]))
    values = [np.asarray(rollout.values) for rollout in rollouts]
    _, returns = learnt_of([_rewards(rollout, config) for rollout in rollouts], values, config)
    told, foreseen = np.concatenate(returns), np.concatenate(values)
    found = {
        "reward": np.mean([rollout.reward for rollout in rollouts]),
        "kl": np.mean([np.sum(rollout.policy) - np.sum(rollout.reference) for rollout in rollouts]),
        "entropy": -policy.mean(),
        "length": np.mean([len(rollout.answer) for rollout in rollouts]),
        "ended": np.mean([rollout.ended for rollout in rollouts]),
        "difference": difference.mean(),
        "difference_max": difference.max(),
        "explained": 1 - (told - foreseen).var() / max(told.var(), 1e-12),
    }
    return {f"ppo/{name}": float(value) for name, value in found.items()}


def _rewards(rollout: Rollout, config: PPOConfig) -> np.ndarray:
    return token_rewards(
        np.asarray(rollout.policy),
        np.asarray(rollout.reference),
        rollout.reward,
        config.kl,
        ended=rollout.ended,
        unended=config.unended,
    )
