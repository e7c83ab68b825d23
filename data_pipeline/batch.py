"""Samples, packs and batches: three of the four types between sound and gradient."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Sample:
    """What a layout makes of utterances. All arrays have the same length T.

    tokens: int64 ids. loss_weight: float32, the weight of predicting this token from those before it.
    modality: uint8 (`Vocabulary.modalities`). group: int32, equal for neighbours that must not be cut apart.
    key: which sample this is, equal on every topology. audio_seconds: speech that the tokens stand for.
    """

    tokens: np.ndarray
    loss_weight: np.ndarray
    modality: np.ndarray
    group: np.ndarray
    key: str
    audio_seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Pack:
    """Samples laid end to end up to the sequence length T, as next-token prediction.

    tokens, labels: int64 [T]; labels[t] is the token after t of the same sample. loss_weight: float32 [T], the
    weight of that prediction, 0 on every sample's last token and on padding. label_modality: uint8 [T].
    positions: int64 [T], from 0 in each sample. lengths: tokens of each sample, padding (if any) last, so that
    they add up to T. keys: the samples. padding: how many of the T tokens are padding.
    """

    tokens: np.ndarray
    labels: np.ndarray
    loss_weight: np.ndarray
    label_modality: np.ndarray
    positions: np.ndarray
    lengths: tuple[int, ...]
    keys: tuple[str, ...]
    padding: int
    audio_seconds: float


@dataclass(frozen=True)
class Batch:
    """A micro-batch of packs laid end to end as one row of N = packs x T tokens, on a device.

    tokens, labels, positions: int64 [1, N]; loss_weight: float32 [1, N]; label_modality: uint8 [1, N];
    cu_seqlens: int32 [samples + 1], where each sample starts, and N; longest: tokens of the longest sample.
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    loss_weight: torch.Tensor
    label_modality: torch.Tensor
    cu_seqlens: torch.Tensor
    longest: int

    def to(self, device: torch.device | str) -> Batch:
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in values.items():
            if torch.is_tensor(value):
                values[name] = value.to(device, non_blocking=True)
        return Batch(**values)


def collate(packs: list[Pack]) -> Batch:
    """One micro-batch of `packs`, on the CPU."""

    def row(name: str) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([getattr(pack, name) for pack in packs]))[None]

    lengths = [length for pack in packs for length in pack.lengths]
    return Batch(
        tokens=row("tokens"),
        labels=row("labels"),
        positions=row("positions"),
        loss_weight=row("loss_weight"),
        label_modality=row("label_modality"),
        cu_seqlens=torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32),
        longest=max(lengths),
    )
