"""SANM, the encoder of FunASR's Paraformer and SenseVoice (Gao et al. 2020, 2006.01713), with FunASR's names.

A block is self-attention and a feed-forward network, each behind a norm; its attention has a memory (FSMN), a
convolution over time of each value dimension, that is added to what is attended to. The first block takes features and
makes vectors; all others keep the width. Widths and depths are the configuration's, or those of a state dict.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import pad, relu, scaled_dot_product_attention

from configs.schema import EncoderKind
from data_pipeline.codecs.weights import read_state

NORM_EPS = {EncoderKind.paraformer: 1e-12, EncoderKind.sense_voice: 1e-5}
"""FunASR gives Paraformer's norms another value than SenseVoice's, which have PyTorch's."""


class Attention(nn.Module):
    def __init__(self, entering: int, width: int, heads: int, kernel: int) -> None:
        super().__init__()
        self.linear_q_k_v = nn.Linear(entering, 3 * width)
        self.linear_out = nn.Linear(width, width)
        self.fsmn_block = nn.Conv1d(width, width, kernel, groups=width, bias=False)
        self._heads = heads
        self._sides = ((kernel - 1) // 2, kernel - 1 - (kernel - 1) // 2)

    def memory(self, values: torch.Tensor) -> torch.Tensor:
        """[rows, frames, width] of values, zeros where there is no frame."""
        return self.fsmn_block(pad(values.transpose(1, 2), self._sides)).transpose(1, 2) + values

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """[rows, queries, width]; `mask`: bool [rows, keys], keys that are there."""
        split = [part.unflatten(-1, (self._heads, -1)).transpose(1, 2) for part in (q, k, v)]
        seen = None if mask is None else mask[:, None, None, :].expand(-1, 1, q.shape[1], -1)
        attended = scaled_dot_product_attention(split[0], split[1], split[2], attn_mask=seen)
        return self.linear_out(attended.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.w_1 = nn.Linear(width, inner)
        self.w_2 = nn.Linear(inner, width)


class Block(nn.Module):
    def __init__(self, entering: int, width: int, heads: int, inner: int, kernel: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(entering, eps=eps)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.self_attn = Attention(entering, width, heads, kernel)
        self.feed_forward = FeedForward(width, inner)

    def projected(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values."""
        q, k, v = self.self_attn.linear_q_k_v(self.norm1(x)).chunk(3, dim=-1)
        return q, k, v

    def finished(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """The block's output; the first block changes the width, so its input is not added."""
        x = x + attended if x.shape == attended.shape else attended
        return x + self.feed_forward.w_2(relu(self.feed_forward.w_1(self.norm2(x))))

    def forward(self, x: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """[rows, frames, width] of rows that see all of themselves; `real`: bool [rows, frames], which are frames."""
        q, k, v = self.projected(x)
        v = v * real[..., None]
        return self.finished(x, self.self_attn.attend(q, k, v, real) + self.self_attn.memory(v))


class Shape(NamedTuple):
    """entering: width of the features. layers: blocks, the first included; tp_layers: more of them behind
    `after_norm`, with a norm behind them; None: neither. eps: of all norms."""

    entering: int
    width: int
    heads: int
    inner: int
    layers: int
    tp_layers: int | None
    kernel: int
    eps: float


class Sanm(nn.Module):
    """The encoder of whole sounds, as offline Paraformer and SenseVoice-small have it.

    Where SenseVoice-small recognises speech it puts four learnt queries in front of the features, for language, event,
    emotion and text form, and reads its answers at their places (`embed.weight`). An adapter wants vectors of sound
    alone, and nothing is put in front: FunASR's speech LLMs call the encoder so (`fun_asr_nano/model.py`).
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        _, width, heads, inner, layers, tp_layers, kernel, eps = shape

        def blocks(count: int, entering: int = width) -> nn.ModuleList:
            return nn.ModuleList([Block(entering, width, heads, inner, kernel, eps) for _ in range(count)])

        self.encoders0 = blocks(1, shape.entering)
        self.encoders = blocks(layers - 1)
        self.after_norm = nn.LayerNorm(width, eps=eps)
        self.tp_encoders = blocks(tp_layers or 0)
        self.tp_norm = nn.Identity() if tp_layers is None else nn.LayerNorm(width, eps=eps)
        self._scale = math.sqrt(width)

    def encode(self, rows: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """[rows, frames, width] of normalised features [rows, frames, entering], some of which are `real`, bool [rows,
        frames], the others behind them: vectors of the real ones do not depend on those."""
        x = (rows * self._scale + positions(rows.shape[1], rows)).to(rows.dtype)
        for block in (*self.encoders0, *self.encoders):
            x = block(x, real)
        x = self.after_norm(x)
        for block in self.tp_encoders:
            x = block(x, real)
        return self.tp_norm(x)


def positions(count: int, like: torch.Tensor, start: int = 0) -> torch.Tensor:
    """[count, width] sines and then cosines of the positions from `start` + 1 on, of any length, as wide as `like` and
    where it is, float32 at least."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    half = like.shape[-1] // 2
    step = math.log(10_000) / (half - 1)
    speeds = torch.exp(torch.arange(half, dtype=dtype, device=like.device) * -step)
    numbers = torch.arange(start + 1, start + 1 + count, dtype=dtype, device=like.device)
    angles = numbers[:, None] * speeds
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def encoder_state(file: Path, part: str) -> dict[str, torch.Tensor]:
    """The encoder's tensors among those of a whole model's file, or of its own. Raises BadInput for another file."""
    stored = read_state(file, part)
    if any(name.startswith("encoder.encoders0.") for name in stored):
        return {name.removeprefix("encoder."): value for name, value in stored.items() if name.startswith("encoder.")}
    return stored
