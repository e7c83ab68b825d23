"""The reward model: which of two answers people prefer, learnt from pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from data_pipeline.batch import Batch
from train.models.heads.reward import REWARD
from train.models.heads.terms import Losses, Targets
from train.objectives.preference import COMPARED, compared, pairs_of


@dataclass(frozen=True)
class BradleyTerry:
    """-log sigmoid(r(chosen) - r(rejected)), a mean over the global batch's pairs (Bradley and Terry 1952; Ouyang et
    al., 2203.02155, equation 1), r being the reward at an answer's last token. Terms, in order: the loss; shares and
    means of COMPARED."""

    @property
    def main(self) -> str:
        return "reward"

    @property
    def sources(self) -> tuple[str, ...]:
        return ()

    @property
    def terms(self) -> int:
        return 1 + len(COMPARED)

    def targets(self, batch: Batch) -> Targets:
        """The reward head wants none: it tells the reward of every place."""
        return Targets(labels=batch.labels, weights=batch.loss_weight)

    def counts(self, batch: Batch) -> torch.Tensor:
        return torch.full((self.terms,), float(len(pairs_of(batch))), dtype=torch.float64)

    def sums(self, losses: Losses, batch: Batch) -> torch.Tensor:
        rewards = _rewards(losses, batch).detach()
        return torch.cat([_pair_losses(rewards).sum()[None].double(), compared(rewards)])

    def loss(self, losses: Losses, batch: Batch, counts: torch.Tensor) -> torch.Tensor:
        return _pair_losses(_rewards(losses, batch)).sum() / counts[0].clamp(min=1).float()

    def averages(self, sums: list[float], counts: list[float]) -> dict[str, float]:
        """Means over pairs by name: "reward", the loss, in nats, and COMPARED."""
        each = zip(("reward", *COMPARED), sums, counts, strict=True)
        return {name: total / count for name, total, count in each if count > 0}


def _rewards(losses: Losses, batch: Batch) -> torch.Tensor:
    """Of the answers of each pair, the chosen one first: fp32 [pairs, 2]."""
    last = batch.cu_seqlens[1:].long() - 1
    return losses[REWARD]["places"]["reward"][0][last[pairs_of(batch)]]


def _pair_losses(rewards: torch.Tensor) -> torch.Tensor:
    return -F.logsigmoid(rewards[:, 0] - rewards[:, 1])
