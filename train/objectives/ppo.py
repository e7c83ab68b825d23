"""Proximal policy optimisation: what policy and critic minimise, and reading single numbers out of a model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from configs.schema import PPOConfig
from data_pipeline.batch import Batch
from train.models.heads.language import LANGUAGE
from train.models.heads.reward import REWARD
from train.models.heads.terms import Losses, Targets

NUMBERS = "ppo"  # a batch's target: float32 [1, N, 4], of the token that each place predicts, in this order
OLD, ADVANTAGE, RETURN, VALUE = range(4)
READ = "read"  # a batch's target: int64 [1, N], which number of a `Reading` a place gives
POLICY_TERMS = ("policy", "clipped", "drift")
CRITIC_TERMS = ("value", "value_clipped")


@dataclass(frozen=True)
class ClippedPolicy:
    """The policy's loss of `configs.schema.PPOConfig` (1707.06347, equation 7), a mean over the tokens of answers.

    Terms: the loss; the share of tokens whose probability went out of the clip, to the side where it learns nothing
    more; and an estimate of the KL divergence from the round's first policy to this one, q - 1 - log q, in nats a token
    (J. Schulman, "Approximating KL divergence").
    """

    clip: float
    chunk: int = 0

    @property
    def terms(self) -> int:
        return len(POLICY_TERMS)

    def targets(self, batch: Batch) -> Targets:
        return asked(batch, self.chunk)

    def counts(self, batch: Batch) -> torch.Tensor:
        return _tokens(batch).expand(self.terms)

    def sums(self, losses: Losses, batch: Batch) -> torch.Tensor:
        numbers, answered = numbers_of(batch), _answered(batch)
        log_ratio = (_log_probabilities(losses) - numbers[..., OLD]).detach().double()
        ratio, advantages = log_ratio.exp(), numbers[..., ADVANTAGE].double()
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip) * advantages < ratio * advantages
        each = (clipped_loss(log_ratio, advantages, self.clip), clipped.double(), ratio - 1 - log_ratio)
        return torch.stack([(one * answered).sum() for one in each])

    def loss(self, losses: Losses, batch: Batch, counts: torch.Tensor) -> torch.Tensor:
        numbers = numbers_of(batch)
        log_ratio = _log_probabilities(losses) - numbers[..., OLD]
        each = clipped_loss(log_ratio, numbers[..., ADVANTAGE], self.clip)
        return (each * _answered(batch)).sum() / counts[0].clamp(min=1).float()


@dataclass(frozen=True)
class ClippedValue:
    """The critic's loss of `configs.schema.PPOConfig`, a mean over the tokens of answers. Terms: the loss; the share of
    tokens whose value went out of the clip, to the side where it learns nothing more."""

    clip: float | None

    @property
    def terms(self) -> int:
        return len(CRITIC_TERMS)

    def targets(self, batch: Batch) -> Targets:
        return asked(batch, 0)

    def counts(self, batch: Batch) -> torch.Tensor:
        return _tokens(batch).expand(self.terms)

    def sums(self, losses: Losses, batch: Batch) -> torch.Tensor:
        numbers, answered = numbers_of(batch).double(), _answered(batch)
        values = losses[REWARD]["places"]["reward"].detach().double()
        each = value_loss(values, numbers[..., VALUE], numbers[..., RETURN], self.clip)
        plain = value_loss(values, numbers[..., VALUE], numbers[..., RETURN], None)
        return torch.stack([(each * answered).sum(), ((each > plain) * answered).sum().double()])

    def loss(self, losses: Losses, batch: Batch, counts: torch.Tensor) -> torch.Tensor:
        numbers, values = numbers_of(batch), losses[REWARD]["places"]["reward"]
        each = value_loss(values, numbers[..., VALUE], numbers[..., RETURN], self.clip)
        return (each * _answered(batch)).sum() / counts[0].clamp(min=1).float()


@dataclass(frozen=True)
class ProximalPolicy:
    """Both losses, each of a model of its own (`train.engines.actor_critic`): the policy's terms, then the critic's."""

    config: PPOConfig
    chunk: int = 0

    @cached_property
    def policy(self) -> ClippedPolicy:
        return ClippedPolicy(self.config.clip, self.chunk)

    @cached_property
    def critic(self) -> ClippedValue:
        return ClippedValue(self.config.clip_value)

    @property
    def main(self) -> str:
        return POLICY_TERMS[0]

    @property
    def sources(self) -> tuple[str, ...]:
        return ()

    @property
    def terms(self) -> int:
        return self.policy.terms + self.critic.terms

    def targets(self, batch: Batch) -> Targets:
        return self.policy.targets(batch)

    def counts(self, batch: Batch) -> torch.Tensor:
        return torch.cat([self.policy.counts(batch), self.critic.counts(batch)])

    def sums(self, losses: Losses, batch: Batch) -> torch.Tensor:
        return torch.cat([self.policy.sums(losses, batch), self.critic.sums(losses, batch)])

    def loss(self, losses: Losses, batch: Batch, counts: torch.Tensor) -> torch.Tensor:
        parts = counts.split([self.policy.terms, self.critic.terms])
        return self.policy.loss(losses, batch, parts[0]) + self.critic.loss(losses, batch, parts[1])

    def averages(self, sums: list[float], counts: list[float]) -> dict[str, float]:
        """Means over the tokens of a step's answers."""
        each = zip((*POLICY_TERMS, *CRITIC_TERMS), sums, counts, strict=True)
        return {name: total / count for name, total, count in each if count > 0}


@dataclass(frozen=True)
class Reading:
    """An objective that only looks: each of `terms` numbers is what `head` says at the place that the batch's target
    READ gives the number: the log-probability of the next token (LANGUAGE), or the reward (REWARD)."""

    head: str
    terms: int
    chunk: int = 0

    def targets(self, batch: Batch) -> Targets:
        return asked(batch, self.chunk)

    def counts(self, batch: Batch) -> torch.Tensor:
        return torch.zeros(self.terms, dtype=torch.float64)

    def sums(self, losses: Losses, batch: Batch) -> torch.Tensor:
        found = _log_probabilities(losses) if self.head == LANGUAGE else losses[REWARD]["places"]["reward"]
        told = found.new_zeros(self.terms, dtype=torch.float64)
        if READ not in batch.targets:
            return told
        row = batch.targets[READ]
        return told.index_add(0, row.values[0], found[0].detach().double() * row.weight[0])

    def loss(self, losses: Losses, batch: Batch, counts: torch.Tensor) -> torch.Tensor:
        return counts.new_zeros((), dtype=torch.float32)


def clipped_loss(log_ratio: torch.Tensor, advantages: torch.Tensor, clip: float) -> torch.Tensor:
    """-min(q A, clip(q, 1 - clip, 1 + clip) A) of each token, of any shape; log_ratio: log q."""
    ratio = log_ratio.exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def value_loss(values: torch.Tensor, old: torch.Tensor, returns: torch.Tensor, clip: float | None) -> torch.Tensor:
    """Half the squared error of each value, or that of the value clipped to `clip` around the old one where it is the
    larger."""
    plain = (values - returns).square()
    if clip is None:
        return plain / 2
    return torch.maximum(plain, (old + (values - old).clamp(-clip, clip) - returns).square()) / 2


def asked(batch: Batch, chunk: int) -> Targets:
    """The log-probability of each token of an answer, to be differentiated by itself."""
    return Targets(
        labels=batch.labels,
        weights=torch.zeros_like(batch.loss_weight),
        places=batch.loss_weight[0].nonzero()[:, 0],
        chunk=chunk,
        apart=True,
    )


def numbers_of(batch: Batch) -> torch.Tensor:
    """The target NUMBERS; zeros in a batch of padding alone."""
    if NUMBERS in batch.targets:
        return batch.targets[NUMBERS].values
    return batch.loss_weight.new_zeros(*batch.loss_weight.shape, 4)


def _answered(batch: Batch) -> torch.Tensor:
    """1 where an answer's token is predicted."""
    return (batch.loss_weight != 0).float()


def _tokens(batch: Batch) -> torch.Tensor:
    return (batch.loss_weight != 0).sum().double()


def _log_probabilities(losses: Losses) -> torch.Tensor:
    return -losses[LANGUAGE]["places"]["cross_entropy"]
