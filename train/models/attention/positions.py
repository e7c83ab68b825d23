"""How tokens know their order: rotary angles with their scalings, and the slopes of sqrt-ALiBi. Pure functions."""

from __future__ import annotations

import math

import torch

from configs.schema import RopeScaling, RopeScalingKind
from train.models.fused import fused


def rotary_frequencies(size: int, base: float, scaling: RopeScaling | None = None) -> tuple[torch.Tensor, float]:
    """Radians a token that each pair of a head's dimensions turns by, fp32 [size / 2], and the factor on cosine and
    sine (Su et al., 2104.09864, eq. 15).

    Scalings stretch a model to more positions than it was trained on. linear divides all frequencies by `factor`
    (2306.15595). llama3 divides slow ones, leaves fast ones, and goes from one to the other in between (2407.21783 and
    its published code). yarn does so by how often a pair turns over the trained positions, and sharpens the scores
    (Peng et al., 2309.00071, section 3).
    """
    frequencies = 1.0 / (base ** (torch.arange(0, size, 2, dtype=torch.float32, device="cpu") / size))
    if scaling is None:
        return frequencies, 1.0
    slow = frequencies / scaling.factor
    if scaling.kind is RopeScalingKind.linear:
        return slow, 1.0
    assert scaling.original_positions is not None, "configs.checks asks for it"
    if scaling.kind is RopeScalingKind.llama3:
        turns = scaling.original_positions / (2 * math.pi / frequencies)  # over the trained positions
        span = scaling.high_frequency_factor - scaling.low_frequency_factor
        kept = ((turns - scaling.low_frequency_factor) / span).clamp(0, 1)
        return (1 - kept) * slow + kept * frequencies, 1.0

    def pair_that_turns(turns: float) -> float:
        trained = scaling.original_positions or 0
        return size * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(base))

    first = max(math.floor(pair_that_turns(scaling.beta_fast)), 0)
    last = min(math.ceil(pair_that_turns(scaling.beta_slow)), size - 1)
    pairs = torch.arange(size // 2, dtype=torch.float32, device="cpu")
    kept = 1 - ((pairs - first) / max(last - first, 1e-3)).clamp(0, 1)
    sharper = scaling.attention_factor
    if sharper is None:
        sharper = 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
    return slow * (1 - kept) + frequencies * kept, sharper


def rotary_tables(
    positions: torch.Tensor, frequencies: torch.Tensor, factor: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, `dtype` [n, 1, size / 2], of int64 positions [n]; angles are taken in fp32."""
    angles = positions[:, None, None].float() * frequencies.to(positions.device)
    return (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)


def rotate(x: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor], interleaved: bool = False) -> torch.Tensor:
    """x [n, heads, size] with its first dimensions, two for each of the tables' m pairs, turned; the others stay.

    A pair are dimensions i and i + m, as Llama's published weights want it, or, `interleaved`, 2i and 2i + 1, as
    GLM's do."""
    cosine, sine = tables
    pairs = cosine.shape[-1]
    turned, rest = (x, None) if 2 * pairs == x.shape[-1] else (x[..., : 2 * pairs], x[..., 2 * pairs :])
    first, second = turned.unflatten(-1, (pairs, 2)).unbind(-1) if interleaved else turned.chunk(2, dim=-1)
    parts = [first * cosine - second * sine, second * cosine + first * sine]
    turned = torch.stack(parts, dim=-1).flatten(-2) if interleaved else torch.cat(parts, dim=-1)
    return turned if rest is None else torch.cat([turned, rest], dim=-1)


@fused
def rotate_both(
    query: torch.Tensor, key: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor], interleaved: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """`rotate` of both."""
    return rotate(query, tables, interleaved), rotate(key, tables, interleaved)


def sqrt_bias(slopes: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
    """What sqrt-ALiBi, as of Step-1, adds to scores: -slope x sqrt(distance), fp32; -inf for tokens still to come
    (distances below 0). slopes: fp32 [heads]; distance: integers [...]. Returns [heads, ...]."""
    root = distance.clamp(min=0).float().sqrt()
    bias = -slopes.view(-1, *[1] * distance.dim()) * root
    return bias.masked_fill(distance < 0, float("-inf"))
