"""Core attention on packed sequences, on PyTorch's own fused kernels."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import MegatronModule
from torch.nn.attention.varlen import varlen_attn


def packed_causal_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seqlens: torch.Tensor, longest: int, scale: float
) -> torch.Tensor:
    """Causal attention within each sample of a packed row.

    query: [t, heads, d]; key, value: [t, kv_heads, d], kv_heads dividing heads; cu_seqlens: int32 [samples + 1];
    longest: tokens of the longest sample. Returns [t, heads, d]. On a GPU, in half precision, one variable-length
    flash kernel does the row; else each sample goes through scaled_dot_product_attention by itself, which on the CPU
    takes half the time of one call with a block mask.
    """
    grouped = query.shape[1] != key.shape[1]
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        bounds = (cu_seqlens, cu_seqlens, longest, longest)
        mixed = varlen_attn(query, key, value, *bounds, scale=scale, window_size=(-1, 0), enable_gqa=grouped)
        return cast(torch.Tensor, mixed)  # a tuple only where more was asked for
    lengths = torch.diff(cu_seqlens).tolist()
    outputs = []
    for sample in zip(query.split(lengths), key.split(lengths), value.split(lengths), strict=True):
        q, k, v = (part.transpose(0, 1)[None] for part in sample)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
        outputs.append(mixed[0].transpose(0, 1))
    return torch.cat(outputs)


class PackedAttention(MegatronModule):
    """Drop-in `core_attention` for Megatron's SelfAttention; it takes packed (thd) rows only.

    Megatron-Core's own, without TransformerEngine, refuses packed sequences. Heads arrive split over the
    tensor-parallel ranks; nothing here communicates.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        softmax_scale: float | None = None,
        **_: object,
    ) -> None:
        super().__init__(config=config)
        self.scale = softmax_scale or config.kv_channels**-0.5

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        attn_mask_type: Any = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> torch.Tensor:
        """query [t, heads, d], key and value [t, kv_heads, d] -> [t, heads * d]."""
        if packed_seq_params is None:
            raise ValueError("PackedAttention needs packed_seq_params: give one sample as a pack of one")
        mixed = packed_causal_attention(
            query,
            key,
            value,
            packed_seq_params.cu_seqlens_q,
            packed_seq_params.max_seqlen_q,
            self.scale,
        )
        return mixed.reshape(mixed.shape[0], -1)
