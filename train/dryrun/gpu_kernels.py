"""A GPU's way through the code, on a machine without one: its fusions are chosen, and its kernels stand for themselves.

Training takes other kernels on a CPU, which need more memory. Each stand-in checks shapes as its kernel does, makes the
kernel's outputs, and keeps for the backward pass what the kernel keeps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from configs.schema import AttentionKernel
from train.models import gradients, norm
from train.models.attention import kernels
from train.models.attention.row import PackedRow
from train.models.heads import vocabulary_loss


@contextmanager
def pretended() -> Iterator[None]:
    """Inside, code that asks finds a GPU, though tensors say that they are on the CPU."""
    import megatron.core.fusions.fused_bias_swiglu as swiglu

    attention = dict.fromkeys((AttentionKernel.varlen, AttentionKernel.flex, AttentionKernel.te), _attention)
    with (
        mock.patch.object(torch.cuda, "is_available", lambda: True),
        mock.patch.dict(kernels._KERNELS, attention),
        mock.patch.object(norm, "rms_norm", _RMSNorm.apply),
        mock.patch.object(gradients, "add_product", _add_product),
        mock.patch.object(vocabulary_loss, "add_product", _add_product),
        mock.patch.object(vocabulary_loss, "_product", _product),
        mock.patch.multiple(swiglu, swiglu=_swiglu, swiglu_back=lambda gradient, both: torch.empty_like(both)),
    ):
        yield


def _add_product(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> None:
    """A product in half precision added to sums in fp32 without a copy, as cuBLAS does."""
    if (left.shape[0], right.shape[1]) != tuple(out.shape) or left.shape[1] != right.shape[0]:
        raise RuntimeError(f"a product of {tuple(left.shape)} and {tuple(right.shape)} for {tuple(out.shape)}")


def _product(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    _add_product(left, right, out)
    return out


def _swiglu(both: torch.Tensor) -> torch.Tensor:
    """[n, 2 f] -> [n, f], one compiled kernel."""
    return both.new_empty(*both.shape[:-1], both.shape[-1] // 2)


class _RMSNorm(torch.autograd.Function):
    """torch.nn.functional.rms_norm: one kernel, which keeps its input and one number a row."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        if x.shape[-1:] != weight.shape:
            raise RuntimeError(f"a norm of {tuple(weight.shape)} for {tuple(x.shape)}")
        ctx.save_for_backward(x, weight, x.new_empty(*x.shape[:-1], 1, dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight) if ctx.needs_input_grad[1] else None, None


class _Attention(torch.autograd.Function):
    """Flash attention and FlexAttention keep queries, keys, values, the output and fp32 log-sums of rows
    (2307.08691, section 3.1)."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        if key.shape != value.shape or query.shape[2] != key.shape[2] or query.shape[1] % key.shape[1]:
            raise RuntimeError(f"attention of {tuple(query.shape)} to {tuple(key.shape)} and {tuple(value.shape)}")
        output = query.new_empty(query.shape)
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:2], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key, value, _, sums = ctx.saved_tensors
        torch.empty_like(sums)
        return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    row: PackedRow,
    slopes: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    output: torch.Tensor = _Attention.apply(query, key, value)
    return output
