"""Vector quantisation on the device of the encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_CHUNK = 1 << 14  # points compared with all centroids at a time


def nearest(points: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """int64 [points]: the row of `centroids` [entries, width] nearest (Euclidean) to each of float32 [points, width].
    The lower row wins a tie."""
    import torch

    half_norms = 0.5 * centroids.square().sum(1)
    parts = [
        torch.argmin(torch.addmm(half_norms, part, centroids.T, alpha=-1.0), dim=1) for part in points.split(_CHUNK)
    ]
    return torch.cat(parts) if parts else points.new_zeros(0, dtype=torch.int64)
