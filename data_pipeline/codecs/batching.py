"""Sounds of like length encoded together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def batches(lengths: Sequence[int], budget: float) -> Iterator[list[int]]:
    """Indices of `lengths` in batches, longest first: as many as fit `budget` when padded to their longest, one at
    least. Padding is small because neighbours in length go together."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def batch_samples(batch_seconds: float | None, device: str, rate: int) -> float:
    """The budget in samples. A GPU wants work; a CPU core is fastest while a layer's activations fit its cache."""
    if batch_seconds is None:
        batch_seconds = 10.0 if device == "cpu" else 120.0
    return batch_seconds * rate


def windows(waves: Sequence[np.ndarray], longest: int) -> tuple[list[np.ndarray], list[int]]:
    """Waves cut into pieces of `longest` samples, the last of each shorter, and which wave each piece is of."""
    pieces, owners = [], []
    for number, wave in enumerate(waves):
        for start in range(0, max(len(wave), 1), longest):
            pieces.append(wave[start : start + longest])
            owners.append(number)
    return pieces, owners


def padded(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """[parts, channels, longest] of tensors [channels, length], zeros after each."""
    import torch

    longest = max(part.shape[-1] for part in parts)
    return torch.stack([torch.nn.functional.pad(part, (0, longest - part.shape[-1])) for part in parts])


def attention_mask(lengths: Sequence[int], device: str) -> torch.Tensor | None:
    """bool [sounds, 1, longest, longest]: keys that are sound and not padding. None where there is no padding."""
    import torch

    longest = max(lengths)
    if min(lengths) == longest:
        return None
    real = torch.arange(longest, device=device) < torch.tensor(lengths, device=device)[:, None]
    return real[:, None, None, :].expand(-1, 1, longest, longest)


def pick_device(wanted: str | None) -> str:
    """`wanted`, or cuda where there is one, else cpu.

    On a GPU, PyTorch would round the inputs of convolutions to ten bits (TF32), and with them codes away from those
    of a CPU; the process then stops doing so.
    """
    import torch

    device = wanted or ("cuda" if torch.cuda.is_available() else "cpu")
    if device != "cpu":
        torch.backends.cudnn.allow_tf32 = False
    return device
