"""Next-token prediction over text and audio codes alike, reported by modality."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from data_pipeline.batch import Batch


@dataclass(frozen=True)
class NextToken:
    """Cross entropy of the next token, weighted token by token. `modalities` are the names by modality number."""

    modalities: tuple[str, ...]

    @property
    def terms(self) -> int:
        return len(self.modalities)

    def counts(self, batch: Batch) -> torch.Tensor:
        """Summed loss weights of each label modality, float64 [modalities]: what the sums are divided by."""
        return self._by_modality(batch.loss_weight, batch)

    def sums(self, losses: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Summed weighted losses of each label modality, float64 [modalities]; losses: [1, N], in nats."""
        return self._by_modality(losses.detach() * batch.loss_weight, batch)

    def total(self, losses: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The scalar to differentiate, before division by the global count."""
        return (losses * batch.loss_weight).sum()

    def averages(self, sums: list[float], counts: list[float]) -> dict[str, float]:
        """Global averages in nats a token: "lm" over all labels, "audio" over all codebooks, then each modality.

        A term that no label belongs to is left out.
        """
        each = dict(zip(self.modalities, zip(sums, counts, strict=True), strict=True))
        terms = {"lm": (sum(sums), sum(counts)), "audio": (sum(sums[1:]), sum(counts[1:])), **each}
        return {name: total / count for name, (total, count) in terms.items() if count > 0}

    def _by_modality(self, values: torch.Tensor, batch: Batch) -> torch.Tensor:
        totals = torch.zeros(self.terms, dtype=torch.float64, device=values.device)
        return totals.index_add_(0, batch.label_modality[0].long(), values[0].double())
