"""RMSNorm for Megatron's layer specs, sharded right under sequence parallelism."""

from __future__ import annotations

from typing import Any

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
        return rms_norm(x, self.weight, self.eps)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean x^2 + eps) x weight over the last axis (Zhang and Sennrich, 1910.07467, eq. 4).

    x: [..., h] and weight [h] of one float dtype; computed in at least fp32. On a CPU PyTorch strings it together
    from a dozen operations; here forward and backward take as few passes over memory as they can.
    """
    if x.is_cuda:
        return F.rms_norm(x, weight.shape, weight, eps)  # one kernel
    result: torch.Tensor = _RMSNorm.apply(x, weight, eps)
    return result


class _RMSNorm(torch.autograd.Function):
    """With r = 1 / sqrt(mean x^2 + eps) and g the gradient of y = x r w:

    dx = g w r - x r^3 / h sum_k g_k x_k w_k,    dw = sum over rows of g x r
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        exact = torch.promote_types(x.dtype, torch.float32)
        rows = x.reshape(-1, x.shape[-1]).to(exact)
        scale = torch.linalg.vector_norm(rows, dim=1, keepdim=True).square_()
        scale = scale.div_(rows.shape[1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (rows * scale).mul_(weight).to(x.dtype).view(x.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        rows, factor = x.reshape(-1, x.shape[-1]).to(scale.dtype), weight.to(scale.dtype)
        given = gradient.reshape(rows.shape).to(scale.dtype)
        products = given * rows
        of_weight = torch.mv(products.t(), scale[:, 0]).to(weight.dtype) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, of_weight, None
        shared = (products @ factor)[:, None] * scale.pow(3) / rows.shape[1]
        of_x = torch.mul(given, factor, out=products).mul_(scale).addcmul_(rows, shared, value=-1)
        return of_x.to(x.dtype).view(x.shape), of_weight, None
