"""Direct preference optimisation, and what objectives over pairs of answers have in common."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from configs.schema import LossConfig, PreferenceConfig
from data_pipeline.batch import Batch
from train.models.heads.language import LANGUAGE
from train.models.heads.terms import Losses, Targets
from train.objectives.next_token import AUDIO, TEXT, modality_weights

COMPARED = ("accuracy", "margin", "chosen", "rejected")


@dataclass(frozen=True)
class DirectPreference:
    """The loss of `configs.schema.PreferenceConfig` (2305.18290, equation 7): a mean over the global batch's pairs.

    modalities: names by modality number, text first. references: log-probabilities of both answers under the weights
    that the stage begins with, by the pair (`pair_of`), to be filled before the first loss. Terms, in order: the loss;
    shares and means of COMPARED, where a reward is beta times what an answer's log-probability has grown by; the cross
    entropy of text and of audio in chosen answers, by the tokens' weights.
    """

    modalities: tuple[str, ...]
    config: PreferenceConfig = field(default_factory=PreferenceConfig)
    language: LossConfig = field(default_factory=LossConfig)
    references: dict[str, tuple[float, float]] = field(default_factory=dict, repr=False, compare=False)
    weights: torch.Tensor = field(init=False, repr=False, compare=False)  # float32 [modalities]

    def __post_init__(self) -> None:
        """Raises BadInput for a weight of a modality that this corpus does not have."""
        object.__setattr__(self, "weights", modality_weights(self.language.modalities, self.modalities))

    @property
    def main(self) -> str:
        return "objective" if self.config.nll else "dpo"

    @property
    def sources(self) -> tuple[str, ...]:
        return ()

    @property
    def terms(self) -> int:
        return 1 + len(COMPARED) + 2

    def targets(self, batch: Batch) -> Targets:
        """The loss of every place that counts, to be differentiated by itself."""
        counting = self._weights(batch)[0] != 0
        return Targets(
            labels=batch.labels,
            weights=torch.zeros_like(batch.loss_weight),
            places=None if counting.all() else counting.nonzero()[:, 0],
            chunk=self.language.chunk,
            apart=True,
        )

    def counts(self, batch: Batch) -> torch.Tensor:
        pairs = torch.full((1 + len(COMPARED),), float(len(pairs_of(batch))), dtype=torch.float64)
        return torch.cat([pairs, self._by_kind(self._weights(batch), batch)])

    def sums(self, losses: Losses, batch: Batch) -> torch.Tensor:
        rewards = self._rewards(losses, batch).detach()
        weighted = losses[LANGUAGE]["places"]["cross_entropy"].detach() * self._weights(batch)
        lost = self._pair_losses(rewards).sum()[None]
        return torch.cat([lost, compared(rewards), self._by_kind(weighted, batch)])

    def loss(self, losses: Losses, batch: Batch, counts: torch.Tensor) -> torch.Tensor:
        loss = self._pair_losses(self._rewards(losses, batch)).sum() / counts[0].clamp(min=1)
        if self.config.nll:
            weighted = losses[LANGUAGE]["places"]["cross_entropy"] * self._weights(batch)
            told = self._by_kind(weighted, batch).sum() / counts[-2:].sum().clamp(min=1e-9)
            loss = loss + self.config.nll * told
        return loss.float()

    def averages(self, sums: list[float], counts: list[float]) -> dict[str, float]:
        """Means by name, in nats: "dpo" and COMPARED over pairs, "text" and "audio" over the tokens of chosen answers;
        "objective" where the chosen answers' cross entropy is minimised too."""
        names = ("dpo", *COMPARED, TEXT, AUDIO)
        each = zip(names, sums, counts, strict=True)
        terms = {name: total / count for name, total, count in each if count > 0}
        if self.config.nll and "dpo" in terms:
            terms["objective"] = terms["dpo"] + self.config.nll * sum(sums[-2:]) / max(sum(counts[-2:]), 1e-9)
        return terms

    def log_probabilities(self, losses: Losses, batch: Batch) -> torch.Tensor:
        """Of the answers of each pair, the chosen one first: float64 [pairs, 2], differentiable."""
        each = -(losses[LANGUAGE]["places"]["cross_entropy"] * self._weights(batch))[0].double()
        segments = each.new_zeros(len(batch.cu_seqlens) - 1).index_add(0, segment_of(batch), each)
        return segments[pairs_of(batch)]

    def _rewards(self, losses: Losses, batch: Batch) -> torch.Tensor:
        found = self.log_probabilities(losses, batch)
        keys = batch.pairs.keys if batch.pairs else ()
        known = [self.references[pair_of(key)] for key in keys]
        return self.config.beta * (found - torch.tensor(known, dtype=found.dtype).view(-1, 2).to(found.device))

    def _pair_losses(self, rewards: torch.Tensor) -> torch.Tensor:
        margins = rewards[:, 0] - rewards[:, 1]
        swapped = self.config.smoothing
        return -(1 - swapped) * F.logsigmoid(margins) - swapped * F.logsigmoid(-margins)

    def _weights(self, batch: Batch) -> torch.Tensor:
        return batch.loss_weight * self.weights.to(batch.loss_weight.device)[batch.label_modality.long()]

    def _by_kind(self, values: torch.Tensor, batch: Batch) -> torch.Tensor:
        """float64 [2]: of text and of audio, in chosen answers."""
        chosen = torch.zeros(len(batch.cu_seqlens) - 1, dtype=torch.bool, device=values.device)
        chosen[pairs_of(batch)[:, 0]] = True
        counting = torch.where(chosen[segment_of(batch)], values[0].double(), 0)
        totals = torch.zeros(2, dtype=torch.float64, device=values.device)
        return totals.index_add(0, (batch.label_modality[0] > 0).long(), counting)


def pair_of(key: str) -> str:
    """What a sample's key names in every epoch: `source/document/part`."""
    source, _, rest = key.partition("/")
    return f"{source}/{rest.partition('/')[2]}"


def pairs_of(batch: Batch) -> torch.Tensor:
    """The segments of each pair: int64 [pairs, 2]."""
    if batch.pairs is None:
        return torch.zeros((0, 2), dtype=torch.int64, device=batch.tokens.device)
    return batch.pairs.segments


def segment_of(batch: Batch) -> torch.Tensor:
    """The segment of each place: int64 [N]."""
    places = torch.arange(batch.tokens.shape[1], dtype=torch.int32, device=batch.tokens.device)
    return torch.searchsorted(batch.cu_seqlens[1:], places, right=True)


def compared(rewards: torch.Tensor) -> torch.Tensor:
    """Sums of COMPARED over pairs of rewards [pairs, 2]: float64 [4]. Accuracy counts pairs whose margin is above 0."""
    chosen, rejected = rewards.double().unbind(1)
    margins = chosen - rejected
    return torch.stack([(margins > 0).double().sum(), margins.sum(), chosen.sum(), rejected.sum()])
