"""Gradients of large weights, added where the engine collects them by the operation that makes them.

Megatron-Core keeps an fp32 buffer of gradients for all micro-batches and ranks, and a hook adds each weight's gradient
to its part of it, `weight.main_grad`, when the backward pass has made that: a tensor as large as the weight, made, read
and thrown away a micro-batch. Products and sums can go into the buffer at once. The hook, which also tells that a
weight is ready to be reduced over ranks, then needs a stand-in for the gradient, and knows by a mark not to add it.
Other engines have no such buffer, and get their gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel import (
    VocabParallelEmbedding,
    layers,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)


def buffer_of(weight: torch.Tensor) -> torch.Tensor | None:
    """Where a weight's gradient is collected, of its shape; None: autograd collects it."""
    return getattr(weight, "main_grad", None) if hasattr(weight, "grad_added_to_main_grad") else None


def stand_in(weight: Any) -> torch.Tensor:
    """What a backward pass returns for a weight whose gradient it has added to the buffer; never read or written."""
    weight.grad_added_to_main_grad = True
    return torch.empty_like(weight)


def add_product(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> None:
    """`out += left @ right`, where half-precision products are added up in fp32."""
    if left.dtype == out.dtype:
        out.addmm_(left, right)
    elif left.is_cuda:
        torch.addmm(out, left, right, out_dtype=out.dtype, out=out)
    else:
        out.add_(left @ right)


# --- linear layers ----------------------------------------------------------------------------------------------------


class _Products:
    """Stands in for Apex's extension of this name, which Megatron-Core's linear layers call; in PyTorch's own terms."""

    @staticmethod
    def wgrad_gemm_accum_fp32(inputs: torch.Tensor, gradient: torch.Tensor, buffer: torch.Tensor) -> None:
        """inputs [n, in], gradient [n, out], buffer fp32 [out, in]."""
        add_product(gradient.t(), inputs, buffer)


def accumulate_in_linear_layers() -> None:
    """Let Megatron-Core's `gradient_accumulation_fusion` be asked for without Apex. Idempotent."""
    if not layers._grad_accum_fusion_available:
        layers._grad_accum_fusion_available = True
        layers.fused_weight_gradient_mlp_cuda = _Products


# --- the embedding ----------------------------------------------------------------------------------------------------


class Embedding(VocabParallelEmbedding):
    """Megatron-Core's embedding, whose backward pass touches the rows that were looked up and no others."""

    def forward(self, input_: torch.Tensor) -> torch.Tensor:
        """input_: int64 [1, N] -> [1, N, h], or under sequence parallelism [N / TP, 1, h]."""
        if buffer_of(self.weight) is None or not self.weight.requires_grad:
            return super().forward(input_)
        rows = input_ - self.vocab_start_index
        elsewhere = (rows < 0) | (rows >= len(self.weight))
        found = _Lookup.apply(rows.masked_fill(elsewhere, 0), self.weight)
        if self.tp_group.size() > 1:
            found = found.masked_fill(elsewhere[..., None], 0)
        if self.reduce_scatter_embeddings:
            return reduce_scatter_to_sequence_parallel_region(found.transpose(0, 1).contiguous(), group=self.tp_group)
        return reduce_from_tensor_model_parallel_region(found, group=self.tp_group)


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows)
        ctx.weight = weight
        return weight[rows]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, torch.Tensor]:
        (rows,) = ctx.saved_tensors
        buffer = buffer_of(ctx.weight)
        assert buffer is not None
        buffer.index_add_(0, rows.flatten(), gradient.reshape(-1, gradient.shape[-1]).to(buffer.dtype))
        return None, stand_in(ctx.weight)
