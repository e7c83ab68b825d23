"""Next-token prediction over text and audio codes alike, reported by modality."""

from __future__ import annotations

import torch

from data_pipeline.batch import Batch


def modality_counts(batch: Batch, modalities: int) -> torch.Tensor:
    """Summed loss weights of each label modality, float64 [modalities]: what the sums below are divided by."""
    return _by_modality(batch.loss_weight, batch, modalities)


def modality_sums(losses: torch.Tensor, batch: Batch, modalities: int) -> torch.Tensor:
    """Summed weighted losses of each label modality, float64 [modalities]; losses: [1, N], in nats."""
    return _by_modality(losses.detach() * batch.loss_weight, batch, modalities)


def weighted_sum(losses: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The scalar to differentiate, before division by the global count."""
    return (losses * batch.loss_weight).sum()


def named_terms(sums: list[float], counts: list[float], names: tuple[str, ...]) -> dict[str, float]:
    """Averages in nats a token: "lm" over all labels, "audio" over all codebooks, then each modality that occurred.

    `names[0]` is text; sums and counts are global, in the order of `names`.
    """
    terms = {name: (s, c) for name, s, c in zip(names, sums, counts, strict=True)}
    terms = {"lm": (sum(sums), sum(counts)), "audio": (sum(sums[1:]), sum(counts[1:])), **terms}
    return {name: total / count for name, (total, count) in terms.items() if count > 0}


def _by_modality(values: torch.Tensor, batch: Batch, modalities: int) -> torch.Tensor:
    totals = torch.zeros(modalities, dtype=torch.float64, device=values.device)
    return totals.index_add_(0, batch.label_modality[0].long(), values[0].double())
