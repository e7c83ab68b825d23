"""FunASR's SANM encoders from their formulas, one sound at a time, in whatever precision they are given."""

from __future__ import annotations

import numpy as np
import torch

Tensors = dict[str, torch.Tensor]


def vectors(w: Tensors, features: torch.Tensor, heads: int, eps: float) -> torch.Tensor:
    """[T, width] of normalised features [T, entering]; w: tensors by FunASR's names inside of the encoder."""
    width, half = len(w["after_norm.weight"]), features.shape[1] // 2
    angles = np.outer(np.arange(1, len(features) + 1), 10_000.0 ** (-np.arange(half) / (half - 1)))
    x = features * width**0.5 + torch.from_numpy(np.hstack([np.sin(angles), np.cos(angles)])).to(features.dtype)
    x = block(w, "encoders0.0", x, heads, eps)
    for stack, norm in (("encoders", "after_norm"), ("tp_encoders", "tp_norm")):
        for number in range(sum(name.startswith(f"{stack}.") for name in w) // 13):
            x = block(w, f"{stack}.{number}", x, heads, eps)
        x = normed(w, norm, x, eps) if f"{norm}.weight" in w else x
    return x


def block(w: Tensors, at: str, x: torch.Tensor, heads: int, eps: float) -> torch.Tensor:
    q, k, v = linear(w, f"{at}.self_attn.linear_q_k_v", normed(w, f"{at}.norm1", x, eps)).chunk(3, dim=1)
    parts = []
    for queries, keys, values in zip(*(whole.chunk(heads, dim=1) for whole in (q, k, v)), strict=True):
        parts.append(torch.softmax(queries @ keys.T / queries.shape[1] ** 0.5, dim=1) @ values)
    made = linear(w, f"{at}.self_attn.linear_out", torch.cat(parts, dim=1)) + remembered(w, at, v)
    x = x + made if x.shape == made.shape else made
    inner = linear(w, f"{at}.feed_forward.w_1", normed(w, f"{at}.norm2", x, eps)).clamp(min=0)
    return x + linear(w, f"{at}.feed_forward.w_2", inner)


def remembered(w: Tensors, at: str, v: torch.Tensor) -> torch.Tensor:
    """Each value, and the weighted sum of those around it: five before and five after with a kernel of 11."""
    kernel = w[f"{at}.self_attn.fsmn_block.weight"][:, 0]
    rows = []
    for place in range(len(v)):
        row = v[place]
        for tap in range(kernel.shape[1]):
            other = place + tap - (kernel.shape[1] - 1) // 2
            if 0 <= other < len(v):
                row = row + kernel[:, tap] * v[other]
        rows.append(row)
    return torch.stack(rows)


def linear(w: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def normed(w: Tensors, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
    centred = x - x.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + eps).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]
