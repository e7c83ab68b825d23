"""Next-token prediction over text and audio codes alike, reported by modality and source: of pretraining and of
fine-tuning, where a layout's loss weights say what is learnt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from configs.schema import LossConfig
from data_pipeline.batch import Batch
from runtime.exits import BadInput
from train.models.heads.language import LANGUAGE
from train.models.heads.terms import Losses, Targets

TEXT, AUDIO = "text", "audio"
MOST_SOURCES = 256  # that a byte tells apart


@dataclass(frozen=True)
class NextToken:
    """Cross entropy of the next token, weighted token by token and by modality (`configs.schema.LossConfig`).

    modalities: names by modality number, text first. What is minimised is one weighted mean over the global batch,

        weight of the term x  sum_t w_t l_t / sum_t w_t,    w_t = the token's loss weight x its modality's weight,

    l_t being the cross entropy of token t, smoothed, with its z term. So weights of modalities say how much one counts
    beside another, and equal ones change nothing: learning rate, clipping and the z coefficient keep their meaning.
    Terms, in order: the plain cross entropy of each modality, by the tokens' own weights; (log Z)^2, likewise; the
    cross entropy of text and of audio in each of the mixture's `sources` that are told apart; and what is minimised, by
    w_t.
    """

    modalities: tuple[str, ...]
    config: LossConfig = field(default_factory=LossConfig)
    sources: tuple[str, ...] = ()
    weights: torch.Tensor = field(init=False, repr=False, compare=False)  # float32 [modalities]

    def __post_init__(self) -> None:
        """Raises BadInput for a weight of a modality that this corpus does not have."""
        object.__setattr__(self, "weights", modality_weights(self.config.modalities, self.modalities))

    @property
    def main(self) -> str:
        return "lm"

    @property
    def terms(self) -> int:
        return len(self.modalities) + 2 + 2 * len(self.sources)

    def targets(self, batch: Batch) -> Targets:
        """What the head is asked of `batch`. Both are on the CPU."""
        wanted = batch.loss_weight[0] != 0
        return Targets(
            labels=batch.labels,
            weights=batch.loss_weight * self.weights[batch.label_modality.long()],
            places=None if wanted.all() else wanted.nonzero()[:, 0],
            smoothing=self.config.smoothing,
            z=self.config.z,
            chunk=self.config.chunk,
        )

    def counts(self, batch: Batch) -> torch.Tensor:
        """float64 [terms]: summed loss weights of each label modality, of all, of text and audio by source, and those
        of what is minimised."""
        each = self._by_modality(batch.loss_weight, batch)
        sources = self._by_source(batch.loss_weight, batch)
        return torch.cat([each, each.sum()[None], sources, (each * self.weights.to(each)).sum()[None]])

    def sums(self, losses: Losses, batch: Batch) -> torch.Tensor:
        """float64 [terms], detached: what `counts` divides."""
        places = losses[LANGUAGE]["places"]
        weighted = places["cross_entropy"] * batch.loss_weight
        each, sources = self._by_modality(weighted, batch), self._by_source(weighted, batch)
        z = (places["z"] * batch.loss_weight).sum(dtype=torch.float64)
        return torch.cat([each, z[None], sources, losses[LANGUAGE]["total"].detach().double()[None]])

    def loss(self, losses: Losses, counts: torch.Tensor) -> torch.Tensor:
        """This micro-batch's part of the loss, to differentiate; `counts` are those of the global batch."""
        return self._scale * losses[LANGUAGE]["total"] / counts[-1].clamp(min=1e-9).float()

    def averages(self, sums: list[float], counts: list[float]) -> dict[str, float]:
        """Global averages: "lm" over all labels, "audio" over all codebooks, then each modality, in nats a token.

        "<source>/text" and "<source>/audio" are those of one source. A term that no label belongs to is left out. "z"
        is there where a coefficient is set, "objective" (what is minimised) where it is not "lm" itself.
        """
        size = len(self.modalities)
        each = dict(zip(self.modalities, zip(sums[:size], counts[:size], strict=True), strict=True))
        terms = {"lm": (sum(sums[:size]), sum(counts[:size])), AUDIO: (sum(sums[1:size]), sum(counts[1:size])), **each}
        of_sources = zip(sums[size + 1 : -1], counts[size + 1 : -1], strict=True)
        terms |= zip((f"{source}/{kind}" for source in self.sources for kind in (TEXT, AUDIO)), of_sources, strict=True)
        if self.config.z:
            terms["z"] = (sums[size], counts[size])
        if self.config.z or self.config.smoothing or self._scale != 1 or bool((self.weights != 1).any()):
            terms["objective"] = (self._scale * sums[-1], counts[-1])
        return {name: total / count for name, (total, count) in terms.items() if count > 0}

    @property
    def _scale(self) -> float:
        return self.config.terms.get(LANGUAGE, 1.0)

    def _by_modality(self, values: torch.Tensor, batch: Batch) -> torch.Tensor:
        totals = torch.zeros(len(self.modalities), dtype=torch.float64, device=values.device)
        return totals.index_add_(0, batch.label_modality[0].long(), values[0].double())

    def _by_source(self, values: torch.Tensor, batch: Batch) -> torch.Tensor:
        """float64 [2 x sources]: text, then audio, of each."""
        totals = torch.zeros(2 * len(self.sources), dtype=torch.float64, device=values.device)
        if batch.sources is None or not self.sources:
            return totals
        places = 2 * batch.sources[0].long() + (batch.label_modality[0] > 0)
        return totals.index_add_(0, places, values[0].double())


def told_apart(sources: tuple[str, ...]) -> tuple[str, ...]:
    """The sources of a mixture whose losses are told apart: none where there is one alone, or too many."""
    return sources if 1 < len(sources) <= MOST_SOURCES else ()


def modality_weights(given: Mapping[str, float], modalities: tuple[str, ...]) -> torch.Tensor:
    """Weights by modality number, float32: a modality's own, else (for a codebook) that of "audio", else 1.

    Raises BadInput for the name of none of them, and where all weights are 0.
    """
    for name in given:
        if name not in (*modalities, AUDIO):
            known = ", ".join(dict.fromkeys((modalities[0], AUDIO, *modalities[1:])))
            raise BadInput(f"loss.modalities.{name}: no such modality in this corpus; there are {known}")
    fallback = [1.0, *(given.get(AUDIO, 1.0) for _ in modalities[1:])]
    weights = torch.tensor([given.get(name, other) for name, other in zip(modalities, fallback, strict=True)])
    if not weights.any():
        raise BadInput(f"loss.modalities={dict(given)}: no modality is left to learn")
    return weights
