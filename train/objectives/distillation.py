"""Following a teacher token by token, beside the text and codes themselves (Hinton et al., 1503.02531)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from configs.schema import DistillationConfig
from data_pipeline.answers import TARGET
from data_pipeline.batch import Batch
from data_pipeline.vocabulary import Vocabulary
from train.models.heads.distillation_loss import Taught, TaughtRange
from train.models.heads.language import LANGUAGE
from train.models.heads.terms import Losses, Targets
from train.objectives.next_token import NextToken


@dataclass(frozen=True)
class Distillation:
    """`NextToken`, and the divergence from a teacher whose answers are the batch's target "teacher".

    Minimised is one weighted mean over the global batch, with w_t and l_t of `NextToken` and c = `cross_entropy`:

        weight of the term x  sum_t w_t (c l_t + (1 - c) T^2 KL_t) / sum_t w_t

    KL_t is over the tokens that can stand at a place: codes of the codebook that is due, else text and special tokens
    (`heads.distillation_loss`, which says how what lies beyond the teacher's k likeliest counts); 0 where the teacher
    was not asked. Terms: those of `NextToken`, then the divergence of text and of audio, by the tokens' own weights.
    """

    base: NextToken
    config: DistillationConfig
    vocabulary: Vocabulary
    starts: torch.Tensor = field(
        init=False, repr=False, compare=False
    )  # int64 [tables + 1], of ids; and the end of all

    def __post_init__(self) -> None:
        starts = [table.start for table in self.vocabulary.tables]
        object.__setattr__(self, "starts", torch.tensor([*starts, self.vocabulary.size]))

    @property
    def main(self) -> str:
        return self.base.main

    @property
    def sources(self) -> tuple[str, ...]:
        return self.base.sources

    @property
    def terms(self) -> int:
        return self.base.terms + 2

    def targets(self, batch: Batch) -> Targets:
        """What the head is asked of `batch`. Both are on the CPU."""
        asked, share = self.base.targets(batch), self.config.cross_entropy
        return replace(asked, weights=share * asked.weights, taught=self._taught(batch, asked.weights, asked.chunk))

    def counts(self, batch: Batch) -> torch.Tensor:
        """float64 [terms]."""
        return torch.cat([self.base.counts(batch), self._of_taught(batch, torch.ones_like(batch.loss_weight))])

    def sums(self, losses: Losses, batch: Batch) -> torch.Tensor:
        """float64 [terms], detached."""
        return torch.cat([self.base.sums(losses, batch), self._of_taught(batch, losses[LANGUAGE]["places"]["kl"])])

    def loss(self, losses: Losses, batch: Batch, counts: torch.Tensor) -> torch.Tensor:
        """This micro-batch's part of the loss, to differentiate."""
        return self.base.loss(losses, batch, counts[: self.base.terms])

    def averages(self, sums: list[float], counts: list[float]) -> dict[str, float]:
        """Those of `NextToken`; "kl", "kl_text" and "kl_audio" in nats a token where the teacher was asked, at the
        distillation's temperature; "taught", the share of all loss weights where it was; "objective"."""
        size = self.base.terms
        terms = self.base.averages(sums[:size], counts[:size])
        kinds = {"kl": (sum(sums[size:]), sum(counts[size:]))}
        kinds |= {f"kl_{kind}": (sums[size + n], counts[size + n]) for n, kind in enumerate(("text", "audio"))}
        terms |= {name: total / count for name, (total, count) in kinds.items() if count > 0}
        everything = sum(counts[: len(self.base.modalities)])
        if everything > 0:
            terms["taught"] = sum(counts[size:]) / everything
            terms["objective"] = self.base.scale * sums[size - 1] / counts[size - 1]
        return terms

    def _taught(self, batch: Batch, weights: torch.Tensor, chunk: int) -> Taught:
        """The teacher's answers by table; every table is there, on every rank, whether anything of it is asked."""
        temperature = self.config.temperature
        if TARGET not in batch.targets:
            return Taught((), temperature, chunk)
        answers = batch.targets[TARGET]
        table = torch.searchsorted(self.starts, batch.labels[0], right=True) - 1
        scale = (1 - self.config.cross_entropy) * temperature**2
        ranges = []
        for number in range(len(self.starts) - 1):
            places = ((table == number) & _is_taught(batch)[0]).nonzero()[:, 0]
            start, stop = self.starts[number : number + 2].tolist()
            held = answers.weight[0, places]
            ranges.append(
                TaughtRange(start, stop, places, scale * weights[0, places], answers.values[0, places, :-1], held)
            )
        return Taught(tuple(ranges), temperature, chunk)

    def _of_taught(self, batch: Batch, values: torch.Tensor) -> torch.Tensor:
        """float64 [2]: `values` by the tokens' own weights, of text and of audio, where the teacher was asked."""
        totals = torch.zeros(2, dtype=torch.float64, device=values.device)
        if TARGET not in batch.targets:
            return totals
        weighted = (values * batch.loss_weight * _is_taught(batch))[0].double()
        return totals.index_add_(0, (batch.label_modality[0] > 0).long(), weighted)


def _is_taught(batch: Batch) -> torch.Tensor:
    """bool [1, N]."""
    return (batch.targets[TARGET].weight.sum(-1) > 0) & (batch.loss_weight > 0)
