"""Four models as one engine: a policy and its critic that learn, and a reward model and a reference that only read.

Each is an engine of its own in the same process groups, so all four share any topology. To whoever trains, this is the
policy's engine: its trained set, its weights, its rate. The critic goes into checkpoints as training state, beside the
optimiser's, so that exports and later stages see the policy alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import isfinite
from typing import Any, Protocol

import torch
from megatron.core.dist_checkpointing.utils import add_prefix_for_sharding

from configs.schema import Config
from data_pipeline.batch import Batch
from train.engines.protocol import Engine, Evidence, Objective, Outcome
from train.models.initialise import BeginRows

CRITIC = "critic"
_PREFIX = f"{CRITIC}."


class BothObjectives(Objective, Protocol):
    """The terms of `policy`, then those of `critic`."""

    @property
    def policy(self) -> Objective: ...

    @property
    def critic(self) -> Objective: ...


class ActorCritic:
    """`policy`, `critic`, `reward` and `reference` are engines; see the module."""

    def __init__(
        self,
        config: Config,
        padded_vocabulary: int,
        objective: BothObjectives,
        device: torch.device,
        build: Callable[[Config, int, Objective, torch.device], Engine],
    ) -> None:
        rewarding = replace(config, stage=replace(config.stage, objective="reward", trainable=None, frozen=[]))
        rewarding = replace(rewarding, optimizer=replace(config.optimizer, groups={}, lr_multipliers={}))
        self.device = device
        # An engine learns something; these two are never asked to. So they have the least to learn that there is.
        self.reward = build(_still(rewarding, []), padded_vocabulary, objective.critic, device)
        self.reference = build(
            _still(config, ["decoder.final_layernorm.weight"]), padded_vocabulary, objective.policy, device
        )
        self.critic = build(rewarding, padded_vocabulary, objective.critic, device)
        self.policy = build(config, padded_vocabulary, objective.policy, device)  # last: whose collectives are timed
        self.data_rank, self.data_size = self.policy.data_rank, self.policy.data_size
        self.trained = self.policy.trained
        self._highest = config.optimizer.lr
        self._critic_lr = config.optimizer.lr if config.ppo.critic_lr is None else config.ppo.critic_lr

    def train_step(
        self,
        batches: list[Batch],
        learning_rate: float,
        extra: list[float],
        accept: Callable[[Outcome], bool],
        *,
        norms: bool = False,
    ) -> Outcome:
        """A step of both, or of neither. A learning rate of 0 is the critic's warm-up: it learns at its highest rate,
        and the policy's optimiser learns the size of its gradients while no parameter moves."""
        made: list[Outcome] = []

        def both(of_critic: Outcome) -> bool:
            agreed: list[bool] = []

            def accept_both(of_policy: Outcome) -> bool:
                agreed.append(accept(_joined(of_policy, of_critic)))
                return agreed[0]

            made.append(self.policy.train_step(batches, learning_rate, extra, accept_both, norms=norms))
            return agreed[0]

        rate = self._critic_lr * (learning_rate / self._highest if learning_rate else 1.0)
        of_critic = self.critic.train_step(batches, rate, [], both)
        return _joined(made[0], of_critic)

    def evidence(self) -> Evidence:
        return self.policy.evidence()

    def evaluate(self, batches: list[Batch], extra: list[float], objective: Objective | None = None) -> Outcome:
        """Of the policy."""
        return self.policy.evaluate(batches, extra, objective)

    def place_rows(self, first: int, begin_rows: BeginRows, text_rows: int) -> None:
        self.policy.place_rows(first, begin_rows, text_rows)

    def logits(self, batch: Batch) -> torch.Tensor | None:
        return self.policy.logits(batch)

    def any(self, flag: bool) -> bool:
        return self.policy.any(flag)

    def sharded_state(self, *, optimizer: bool, loading: bool) -> dict[str, Any]:
        state = self.policy.sharded_state(optimizer=optimizer, loading=loading)
        if optimizer:
            critic = self.critic.sharded_state(optimizer=True, loading=loading)
            add_prefix_for_sharding(critic, _PREFIX)
            state[CRITIC] = critic
        return state

    def load_state(self, state: dict[str, Any], *, optimizer: bool) -> None:
        self.policy.load_state({key: part for key, part in state.items() if key != CRITIC}, optimizer=optimizer)
        if optimizer:
            self.critic.load_state(state[CRITIC], optimizer=True)


def _still(config: Config, trainable: list[str]) -> Config:
    """For an engine that only reads: nothing of it is kept twice."""
    parallel = replace(config.parallel, distributed_optimizer=False)
    optimizer = replace(config.optimizer, groups={}, lr_multipliers={})
    stage = replace(config.stage, trainable=trainable, frozen=[])
    return replace(config, stage=stage, parallel=parallel, optimizer=optimizer)


def _joined(policy: Outcome, critic: Outcome) -> Outcome:
    """The policy's, with the critic's terms after its own, and the time of both. The critic's gradient norm takes the
    place of the policy's where it is not finite, so that such a step is not learned from."""
    norm, other = policy.gradient_norm, critic.gradient_norm
    phases = {*policy.seconds, *critic.seconds}
    return replace(
        policy,
        sums=[*policy.sums, *critic.sums],
        counts=[*policy.counts, *critic.counts],
        gradient_norm=norm if other is None or isfinite(other) else other,
        seconds={phase: policy.seconds.get(phase, 0.0) + critic.seconds.get(phase, 0.0) for phase in phases},
    )
