"""RMSNorm for Megatron's layer specs, sharded right under sequence parallelism."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from megatron.core.transformer import TransformerConfig
from torch import nn


class RMSNorm(nn.Module):
    """Root mean square norm (Zhang and Sennrich, 1910.07467, eq. 4) over the last axis.

    Megatron-Core's own refuses sequence parallelism without TransformerEngine or Apex. There every rank sees a slice
    of the sequence, so the weight's gradient is a partial sum; the `sequence_parallel` mark makes Megatron add them.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: object) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [..., hidden], any float dtype; the mean is taken in at least fp32."""
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)
