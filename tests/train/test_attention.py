"""Packed attention and norms against float64 formulas."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train.models.attention import packed_causal_attention
from train.models.norm import RMSNorm


def reference(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """softmax(q k / sqrt(d)) v in float64, one token at a time, over the tokens of its own sample up to itself."""
    query, key, value = query.double(), key.double(), value.double()
    repeats = query.shape[1] // key.shape[1]
    rows, start = [], 0
    for length in lengths:
        for here in range(start, start + length):
            heads = []
            for head in range(query.shape[1]):
                keys, values = key[start : here + 1, head // repeats], value[start : here + 1, head // repeats]
                weights = torch.softmax(keys @ query[here, head] / query.shape[2] ** 0.5, dim=0)
                heads.append(weights @ values)
            rows.append(torch.stack(heads))
        start += length
    return torch.stack(rows)


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    heads=st.sampled_from([(2, 1), (4, 2), (3, 3)]),
    size=st.sampled_from([4, 8]),
    seed=st.integers(0, 1000),
)
def test_packed_attention_and_its_gradients_match_float64(
    lengths: list[int], heads: tuple[int, int], size: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    shapes = [(total, heads[0], size), (total, heads[1], size), (total, heads[1], size)]
    inputs = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)

    mixed = packed_causal_attention(*inputs, cu_seqlens, max(lengths), size**-0.5)
    expected = reference(*exact, lengths)
    assert torch.allclose(mixed.double(), expected, atol=1e-5)

    direction = torch.randn(mixed.shape, generator=generator)
    mixed.backward(direction)
    expected.backward(direction.double())
    for ours, theirs in zip(inputs, exact, strict=True):
        assert ours.grad is not None and theirs.grad is not None
        assert torch.allclose(ours.grad.double(), theirs.grad, atol=1e-4)


def test_attention_does_not_cross_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(10, 2, 4, generator=generator) for _ in range(3))
    cu_seqlens = torch.tensor([0, 4, 10], dtype=torch.int32)
    before = packed_causal_attention(query, key, value, cu_seqlens, 6, 0.5)
    value[:4] += 100.0
    after = packed_causal_attention(query, key, value, cu_seqlens, 6, 0.5)
    assert torch.equal(before[4:], after[4:])
    assert not torch.equal(before[:4], after[:4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_matches_float64(dtype: torch.dtype) -> None:
    from megatron.core.transformer import TransformerConfig

    config = TransformerConfig(num_layers=1, hidden_size=16, num_attention_heads=2, params_dtype=dtype)
    norm = RMSNorm(config, 16, eps=1e-5)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2.0, 16))
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    exact = x.double() / torch.sqrt(x.double().pow(2).mean(-1, keepdim=True) + 1e-5) * norm.weight.double()
    assert torch.allclose(norm(x).double(), exact, rtol=1e-5 if dtype is torch.float32 else 2e-2)
