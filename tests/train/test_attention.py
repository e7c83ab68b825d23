"""Kernels of packed attention, and norms, against float64 formulas."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask

from configs.alibi import alibi_slopes
from configs.schema import AttentionKernel as Name
from configs.schema import Positions
from data_pipeline.context import share_of
from runtime.exits import BadInput
from tests.train.attention_reference import batch_of, inputs, reference
from train.models.attention import kernels
from train.models.attention.blocks import causal_blocks
from train.models.attention.row import packed_row
from train.models.norm import RMSNorm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BIASED = [False, True]


def computed(
    kernel: kernels.Kernel,
    given: Sequence[torch.Tensor],
    lengths: list[int],
    slopes: Sequence[float],
    ranks: int,
    dtype: torch.dtype = torch.float32,
    backward: bool = True,
) -> list[torch.Tensor]:
    """What `ranks` context-parallel ranks make of the row, one after the other, put together: the mixture and (unless
    there is no `backward`) the gradients of query, key and value, float64."""
    query, key, value = (tensor.to(DEVICE, dtype).requires_grad_(backward) for tensor in given[:3])
    bias = torch.tensor(slopes, device=DEVICE) if slopes else None
    whole = torch.zeros_like(query)
    for rank in range(ranks):
        row = packed_row(share_of(batch_of(lengths), rank, ranks).to(DEVICE))
        mixed = kernel(query[row.places], key, value, row, bias, query.shape[2] ** -0.5)
        if backward:
            mixed.backward(given[3].to(DEVICE, dtype)[row.places])
        whole[row.places] = mixed.detach()
    gradients = [tensor.grad for tensor in (query, key, value)] if backward else []
    return [tensor.detach().cpu().double() for tensor in (whole, *gradients) if tensor is not None]


def exact(given: Sequence[torch.Tensor], lengths: list[int], slopes: Sequence[float]) -> list[torch.Tensor]:
    tensors = [tensor.detach().requires_grad_() for tensor in given[:3]]
    mixed = reference(*tensors, lengths, slopes)
    mixed.backward(given[3])
    return [mixed.detach(), *(tensor.grad for tensor in tensors if tensor.grad is not None)]


def check(
    kernel: kernels.Kernel,
    lengths: list[int],
    heads: tuple[int, int],
    size: int,
    biased: bool,
    ranks: int,
    tolerance: float = 2e-5,
    seed: int = 0,
    **options: Any,
) -> None:
    given = inputs(sum(lengths), *heads, size, seed)
    slopes = alibi_slopes(heads[0]) if biased else ()
    found = computed(kernel, given, lengths, slopes, ranks, **options)
    for ours, theirs in zip(found, exact(given, lengths, slopes), strict=False):
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max().clamp(min=1)


@st.composite
def packings(draw: st.DrawFn) -> tuple[list[int], int]:
    """Lengths of samples, and context-parallel ranks whose runs divide them."""
    ranks = draw(st.sampled_from([1, 2, 3]))
    lengths = draw(st.lists(st.integers(1, 30), min_size=1, max_size=6))
    return [*lengths, 2 * ranks - sum(lengths) % (2 * ranks)], ranks


@settings(max_examples=60)
@given(
    packing=packings(),
    heads=st.sampled_from([(2, 1), (4, 2), (3, 3), (6, 2)]),
    size=st.sampled_from([8, 64, 128]),
    biased=st.booleans(),
    block=st.sampled_from([1, 5, 256]),
    seed=st.integers(0, 1000),
)
def test_sdpa_and_its_gradients_match_float64(
    packing: tuple[list[int], int], heads: tuple[int, int], size: int, biased: bool, block: int, seed: int
) -> None:
    lengths, ranks = packing
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_BLOCK", block)  # so that short samples too are cut into several
        check(kernels.sdpa, lengths, heads, size, biased, ranks, seed=seed)


@pytest.mark.parametrize("biased", BIASED)
@pytest.mark.parametrize("size", [64, 128])
def test_samples_longer_than_a_block(biased: bool, size: int) -> None:
    check(kernels.sdpa, [700, 20, 304], (4, 2), size, biased, ranks=2)


@pytest.mark.parametrize("biased", BIASED)
def test_bf16_is_within_its_rounding(biased: bool) -> None:
    check(kernels.sdpa, [300, 20], (4, 2), 64, biased, ranks=2, dtype=torch.bfloat16, tolerance=3e-2)


@settings(max_examples=6)
@given(packing=packings(), heads=st.sampled_from([(4, 2), (3, 3)]), size=st.sampled_from([8, 64]), biased=st.booleans())
def test_flex_attention_computes_the_formula(
    packing: tuple[list[int], int], heads: tuple[int, int], size: int, biased: bool
) -> None:
    """On the CPU uncompiled and without gradients, which FlexAttention does not have there."""
    lengths, ranks = packing
    check(kernels.flex, lengths, heads, size, biased, ranks, backward=DEVICE == "cuda")


@settings(max_examples=60)
@given(lengths=st.lists(st.one_of(st.integers(1, 40), st.integers(100, 700)), min_size=1, max_size=8))
def test_blocks_of_a_row_are_those_that_looking_at_every_pair_finds(lengths: list[int]) -> None:
    row = packed_row(batch_of(lengths))
    places, samples = sum(lengths), row.samples(sum(lengths))

    def visible(batch: Any, head: Any, q: Any, k: Any) -> Any:
        return (samples[q] == samples[k]) & (k <= q)

    found = causal_blocks(row.begins(places), visible)
    expected = create_block_mask(visible, None, None, places, places, device="cpu")
    assert found.seq_lengths == expected.seq_lengths and found.BLOCK_SIZE == expected.BLOCK_SIZE
    assert torch.equal(found.to_dense(), expected.to_dense())
    for count, which in (("kv_num_blocks", "kv_indices"), ("full_kv_num_blocks", "full_kv_indices")):
        counts = getattr(found, count)
        assert torch.equal(counts, getattr(expected, count))
        mine, theirs = getattr(found, which), getattr(expected, which)
        first = torch.arange(mine.shape[-1]) < counts[..., None]
        assert torch.equal(mine[first], theirs[first])


def bottom_right(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_queries: torch.Tensor, cu_keys: torch.Tensor
) -> torch.Tensor:
    """What flash kernels of variable lengths say that they compute: a piece's last query sees all of its keys."""
    outputs = []
    for piece in range(len(cu_queries) - 1):
        q = query[cu_queries[piece] : cu_queries[piece + 1]]
        k, v = (tensor[cu_keys[piece] : cu_keys[piece + 1]] for tensor in (key, value))
        ahead = torch.arange(len(k))[None] > torch.arange(len(k) - len(q), len(k))[:, None]
        mask = torch.zeros(len(q), len(k)).masked_fill(ahead, float("-inf"))
        mixed = torch.nn.functional.scaled_dot_product_attention(
            *(tensor.transpose(0, 1)[None] for tensor in (q, k, v)), attn_mask=mask, enable_gqa=True
        )
        outputs.append(mixed[0].transpose(0, 1))
    return torch.cat(outputs)


class StandIn:
    """Takes the arguments of TransformerEngine's DotProductAttention that we give, and of nothing else."""

    def __init__(self, heads: int, size: int, *, num_gqa_groups: int, softmax_scale: float, **fixed: Any) -> None:
        assert fixed == {"attention_dropout": 0.0, "qkv_format": "thd", "attn_mask_type": "padding_causal"}
        assert softmax_scale == size**-0.5 and heads % num_gqa_groups == 0

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        qkv_format: str,
        cu_seqlens_q: torch.Tensor,
        cu_seqlens_kv: torch.Tensor,
        max_seqlen_q: int,
        max_seqlen_kv: int,
        attn_mask_type: str,
    ) -> torch.Tensor:
        assert (max_seqlen_q, max_seqlen_kv) == tuple(
            int(torch.diff(bounds).max()) for bounds in (cu_seqlens_q, cu_seqlens_kv)
        )
        assert torch.equal(cu_seqlens_q, cu_seqlens_kv) or attn_mask_type == "padding_causal_bottom_right"
        return bottom_right(query, key, value, cu_seqlens_q, cu_seqlens_kv).flatten(1)


@settings(max_examples=20)
@given(packing=packings(), heads=st.sampled_from([(4, 2), (3, 3)]))
def test_pieces_handed_to_kernels_of_variable_lengths(packing: tuple[list[int], int], heads: tuple[int, int]) -> None:
    """The bounds, lengths and masks that flash attention and TransformerEngine get: both need a GPU, so functions that
    do what their documentation says stand in for them."""
    lengths, ranks = packing

    def varlen(q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int, **options: Any) -> torch.Tensor:
        assert (max_q, max_k) == (int(torch.diff(cu_q).max()), int(torch.diff(cu_k).max()))
        assert options == {"scale": 64**-0.5, "window_size": (-1, 0), "enable_gqa": heads[0] != heads[1]}
        return bottom_right(q, k, v, cu_q, cu_k)

    engine = ModuleType("transformer_engine.pytorch")
    engine.DotProductAttention = StandIn  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.nn.attention.varlen.varlen_attn", varlen)
        patch.setitem(sys.modules, "transformer_engine", ModuleType("transformer_engine"))
        patch.setitem(sys.modules, "transformer_engine.pytorch", engine)
        kernels._transformer_engine_attention.cache_clear()
        for kernel in (kernels.varlen, kernels.transformer_engine):
            check(kernel, lengths, heads, 64, False, ranks)
        kernels._transformer_engine_attention.cache_clear()


if DEVICE == "cuda":  # what only a GPU can compute

    @pytest.mark.parametrize("size", [64, 128])
    @pytest.mark.parametrize("ranks", [1, 2])
    @pytest.mark.parametrize(
        ("kernel", "biased", "dtype", "tolerance"),
        [
            (kernels.varlen, False, torch.bfloat16, 3e-2),
            (kernels.flex, True, torch.float32, 1e-3),
            (kernels.flex, True, torch.bfloat16, 3e-2),
            (kernels.flex, False, torch.bfloat16, 3e-2),
            (kernels.sdpa, True, torch.float32, 1e-3),
        ],
    )
    def test_kernels_of_a_gpu(
        kernel: kernels.Kernel, biased: bool, dtype: torch.dtype, tolerance: float, ranks: int, size: int
    ) -> None:
        check(kernel, [700, 1, 19, 304], (8, 2), size, biased, ranks, dtype=dtype, tolerance=tolerance)


# --- which kernel ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "positions", "cuda", "half", "engine", "found"),
    [
        (Name.auto, Positions.rope, False, False, False, Name.sdpa),
        (Name.auto, Positions.sqrt_alibi, False, True, True, Name.sdpa),
        (Name.auto, Positions.rope, True, True, False, Name.varlen),
        (Name.auto, Positions.none, True, True, True, Name.varlen),
        (Name.auto, Positions.rope, True, False, False, Name.sdpa),
        (Name.auto, Positions.sqrt_alibi, True, True, False, Name.flex),
        (Name.auto, Positions.sqrt_alibi, True, False, True, Name.flex),
        (Name.te, Positions.rope, True, True, True, Name.te),
        (Name.flex, Positions.rope, True, True, False, Name.flex),
        (Name.sdpa, Positions.sqrt_alibi, True, True, True, Name.sdpa),
        (Name.te, Positions.rope, True, True, False, "needs TransformerEngine, which is not installed"),
        (Name.te, Positions.rope, False, True, True, "needs a GPU"),
        (Name.flex, Positions.sqrt_alibi, False, False, False, "needs a GPU"),
        (Name.varlen, Positions.rope, False, True, False, "needs a GPU"),
    ],
)
def test_the_kernel_fits_the_machine(
    asked: Name, positions: Positions, cuda: bool, half: bool, engine: bool, found: Name | str
) -> None:
    def choose() -> Name:
        return kernels.choose(asked, positions, cuda=cuda, half=half, transformer_engine=engine)

    if isinstance(found, Name):
        assert choose() is found
    else:
        with pytest.raises(BadInput, match=found):
            choose()


@pytest.mark.parametrize("kernel", [kernels.sdpa, kernels.flex])
def test_attention_does_not_cross_samples(kernel: Callable[..., torch.Tensor]) -> None:
    query, key, value, _ = (tensor.float() for tensor in inputs(10, 2, 2, 4, seed=0))
    row = packed_row(batch_of([4, 6]))
    before = kernel(query, key, value, row, None, 0.5)
    value[:4] += 100.0
    after = kernel(query, key, value, row, None, 0.5)
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
