"""Rotary angles against transformers' own, and the slopes of sqrt-ALiBi against ALiBi's rule."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from checkpoints.maps.llama import LLAMA
from configs.alibi import alibi_slopes
from configs.schema import RopeScaling, RopeScalingKind
from tests.checkpoints.models import backbone
from train.models.attention.positions import rotary_frequencies, rotary_tables, rotate, sqrt_bias

SCALINGS = (
    None,
    RopeScaling(RopeScalingKind.linear, 4.0),
    RopeScaling(RopeScalingKind.llama3, 8.0, 8192),
    RopeScaling(RopeScalingKind.llama3, 32.0, 8192, 1.0, 4.0),
    RopeScaling(RopeScalingKind.yarn, 4.0, 32768),
    RopeScaling(RopeScalingKind.yarn, 40.0, 4096, beta_fast=16.0, beta_slow=2.0, attention_factor=1.25),
)


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("base", [10000.0, 500000.0])
@pytest.mark.parametrize("size", [64, 128])
def test_rotations_are_those_of_transformers(scaling: RopeScaling | None, base: float, size: int) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    of = backbone(hidden=4 * size, rope_base=base, rope_scaling=scaling, max_positions=131072)
    described = LLAMA.write_config(of)
    theirs = LlamaRotaryEmbedding(
        LlamaConfig(**{key: value for key, value in described.items() if key not in ("architectures", "model_type")})
    )
    frequencies, factor = rotary_frequencies(size, base, scaling)
    assert torch.allclose(frequencies, theirs.inv_freq, rtol=2e-7, atol=0)
    assert factor == pytest.approx(theirs.attention_scaling, rel=1e-12)

    generator = torch.Generator().manual_seed(0)
    positions = torch.tensor([0, 1, 2, 0, 1, 77])
    query = torch.randn(6, 4, size, generator=generator)
    expected, _ = apply_rotary_pos_emb(
        query.transpose(0, 1)[None], query.transpose(0, 1)[None], *theirs(query, positions[None])
    )
    ours = rotate(query, rotary_tables(positions, frequencies, factor, torch.float32))
    assert torch.allclose(ours, expected[0].transpose(0, 1), atol=1e-4 if scaling else 0, rtol=0)


def test_half_a_head_in_interleaved_pairs_is_rotated_as_glm_does() -> None:
    from transformers import GlmConfig
    from transformers.models.glm.modeling_glm import GlmRotaryEmbedding, apply_rotary_pos_emb

    theirs = GlmRotaryEmbedding(GlmConfig(head_dim=32, hidden_size=128, num_attention_heads=4))
    frequencies, factor = rotary_frequencies(16, 10000.0)
    positions = torch.tensor([0, 1, 2, 0, 1, 77])
    query = torch.randn(6, 4, 32, generator=torch.Generator().manual_seed(0))
    expected, _ = apply_rotary_pos_emb(
        query.transpose(0, 1)[None], query.transpose(0, 1)[None], *theirs(query, positions[None])
    )
    tables = rotary_tables(positions, frequencies, factor, torch.float32)
    assert torch.allclose(rotate(query, tables, interleaved=True), expected[0].transpose(0, 1), atol=1e-6, rtol=0)
    assert torch.equal(rotate(query, tables)[..., 16:], query[..., 16:])


@given(st.integers(1, 200))
def test_slopes_follow_the_published_rule(heads: int) -> None:
    def rule(count: int) -> list[float]:
        """As ALiBi's authors wrote it: powers of two in a geometric series, other counts from the next two."""
        below = 2 ** math.floor(math.log2(count))
        start = 2 ** (-(2 ** -(math.log2(below) - 3)))
        series = [start * start**place for place in range(below)]
        return series if below == count else series + rule(2 * below)[0::2][: count - below]

    assert alibi_slopes(heads) == pytest.approx(rule(heads), rel=1e-12)


def test_slopes_of_step_1() -> None:
    """96 heads are 64 and 32, 48 are 32 and 16; the series starts at its own ratio."""
    assert alibi_slopes(96)[:2] == pytest.approx((2 ** (-8 / 64), 2 ** (-16 / 64)))
    assert alibi_slopes(96)[63] == alibi_slopes(48)[31] == 2**-8
    assert alibi_slopes(48)[32:34] == pytest.approx((2 ** (-4 / 32), 2 ** (-12 / 32)))


def test_the_bias_grows_with_the_root_of_the_distance() -> None:
    bias = sqrt_bias(torch.tensor([0.5, 0.25]), torch.tensor([0, 1, 4, 9, -1]))
    assert bias.tolist() == [[0, -0.5, -1, -1.5, -math.inf], [0, -0.25, -0.5, -0.75, -math.inf]]
