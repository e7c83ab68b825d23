"""Layers of models over frames: everything a frame becomes depends on frames within a known reach, if that is set."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

RESIDUAL_REACH = 2  # frames before and after one that a `Residual` sees


class FrameNorm(nn.Module):
    """LayerNorm over the channels of each frame of [B, channels, frames], so that no frame depends on how long the
    sound is, as group norms over time would have it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x.transpose(1, 2), self.weight.shape, self.weight, self.bias).transpose(1, 2)


class Residual(nn.Module):
    """Two convolutions over three frames, with the time of the flow added between them, beside a way around."""

    def __init__(self, inputs: int, outputs: int, time: int | None = None) -> None:
        super().__init__()
        self.first = nn.Conv1d(inputs, outputs, 3, padding=1)
        self.first_norm = FrameNorm(outputs)
        self.second = nn.Conv1d(outputs, outputs, 3, padding=1)
        self.second_norm = FrameNorm(outputs)
        self.around = nn.Conv1d(inputs, outputs, 1)
        self.time = nn.Linear(time, outputs) if time is not None else None

    def forward(self, x: torch.Tensor, mask: torch.Tensor, time: torch.Tensor | None = None) -> torch.Tensor:
        """x: [B, inputs, frames]; mask: [B, 1, frames], 1 on real frames; time: [B, time]. [B, outputs, frames]."""
        inner = functional.mish(self.first_norm(self.first(x * mask)))
        if self.time is not None and time is not None:
            inner = inner + self.time(functional.mish(time))[:, :, None]
        inner = functional.mish(self.second_norm(self.second(inner * mask)))
        return inner + self.around(x * mask)


class Transformer(nn.Module):
    """Self-attention and an MLP with GELU, each after a norm. Order is told by the convolutions around it."""

    def __init__(self, channels: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, channels)
        self.mlp_norm = nn.LayerNorm(channels)
        self.up = nn.Linear(channels, 4 * channels)
        self.down = nn.Linear(4 * channels, channels)

    def forward(self, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """x: [B, channels, frames]; seen: bool [B, 1, frames, frames], which frames each one attends to."""
        x = x.transpose(1, 2)
        batch, frames, _ = x.shape
        parts = self.qkv(self.attention_norm(x)).view(batch, frames, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind()
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, frames, -1))
        x = x + self.down(functional.gelu(self.up(self.mlp_norm(x))))
        return x.transpose(1, 2)


def mask_of(lengths: torch.Tensor, longest: int) -> torch.Tensor:
    """bool [B, 1, longest]: the first `lengths` places of each row."""
    return (torch.arange(longest, device=lengths.device)[None] < lengths[:, None])[:, None]


def attention_mask(mask: torch.Tensor, reach: int | None) -> torch.Tensor:
    """bool [B, 1, frames, frames]: the real frames within `reach` (None: all) of each, and itself."""
    places = torch.arange(mask.shape[-1], device=mask.device)
    apart = (places[:, None] - places[None]).abs()
    near = apart <= (mask.shape[-1] if reach is None else reach)
    return (near & (mask[:, :, None] > 0)) | (apart == 0)


def time_embedding(time: torch.Tensor, width: int, scale: float = 1000.0) -> torch.Tensor:
    """Sines and cosines of `time`, [B] from 0 to 1, at frequencies from 1 down to 1/10,000: [B, width]."""
    half = width // 2
    rates = torch.exp(-math.log(10_000.0) / max(half - 1, 1) * torch.arange(half, device=time.device))
    angles = scale * time[:, None].float() * rates[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)
