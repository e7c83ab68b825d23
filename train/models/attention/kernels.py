"""Causal attention within each sample of a packed row, one kernel a function, and which of them serves when.

All take query [n, heads, size] of the places in `row.chunks`, key and value [N, kv_heads, size] of the whole row,
kv_heads dividing heads, sqrt-ALiBi's slopes (fp32 [heads]; None: no bias) and the factor on the scores. They return
[n, heads, size].
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from configs.schema import AttentionKernel, Config, Positions, Precision
from runtime.exits import BadInput
from train.models.attention.blocks import causal_blocks
from train.models.attention.positions import sqrt_bias
from train.models.attention.row import PackedRow


class Kernel(Protocol):
    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        row: PackedRow,
        slopes: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor: ...


# --- which ------------------------------------------------------------------------------------------------------------


def choose(
    asked: AttentionKernel, positions: Positions, *, cuda: bool, half: bool, transformer_engine: bool
) -> AttentionKernel:
    """The kernel for these positions on this machine; never `auto`. half: parameters of two bytes.

    Raises BadInput where the machine lacks what was asked for; `configs.checks` has refused what a kernel cannot do.
    """
    if asked is AttentionKernel.auto:
        if not cuda:
            return AttentionKernel.sdpa
        if positions is Positions.sqrt_alibi:
            return AttentionKernel.flex
        return AttentionKernel.varlen if half else AttentionKernel.sdpa
    if asked is not AttentionKernel.sdpa and not cuda:
        raise BadInput(f"train.attention={asked.value} needs a GPU, and there is none; auto takes what fits")
    if asked is AttentionKernel.te and not transformer_engine:
        raise BadInput("train.attention=te needs TransformerEngine, which is not installed; auto takes what fits")
    return asked


def chosen(asked: AttentionKernel, positions: Positions, *, half: bool) -> AttentionKernel:
    """`choose` on the machine at hand."""
    return choose(
        asked,
        positions,
        cuda=torch.cuda.is_available(),
        half=half,
        transformer_engine=importlib.util.find_spec("transformer_engine") is not None,
    )


def check_kernel(config: Config) -> None:
    """Raises BadInput where this machine cannot do what `train.attention` asks for."""
    chosen(config.train.attention, config.backbone.positions, half=config.train.precision is Precision.bf16)


def kernel_of(name: AttentionKernel) -> Kernel:
    return _KERNELS[name]


# --- PyTorch's scaled_dot_product_attention, sample by sample ---------------------------------------------------------

# Queries a call under a bias. Keys that none of them sees are left out, which halves the work of long samples; on a
# CPU core, forward and backward of 2,048 tokens then take 255 ms (8 heads of 64), as without a bias; in one call, 400.
_BLOCK = 256


def sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    row: PackedRow,
    slopes: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """Every piece by itself: on the CPU that takes half the time of one call with a mask of the row."""
    pieces = iter(query.split([count for chunk in row.chunks for count in chunk.queries]))
    outputs = []
    for chunk in row.chunks:
        keys = key[chunk.first_key : chunk.end].split(chunk.keys)
        values = value[chunk.first_key : chunk.end].split(chunk.keys)
        for k, v in zip(keys, values, strict=True):
            q, k, v = (part.transpose(0, 1)[None] for part in (next(pieces), k, v))
            if slopes is None and q.shape[2] == k.shape[2]:
                mixed = F.scaled_dot_product_attention(
                    q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
                )
            else:
                mixed = _biased(q, k, v, row, slopes, scale)
            outputs.append(mixed[0].transpose(0, 1))
    return torch.cat(outputs)


def _biased(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    row: PackedRow,
    slopes: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """One piece, [1, heads, n, size] with its keys [1, kv_heads, m, size]: the last query sees all m."""
    longest = row.once("longest keys", lambda: max(count for chunk in row.chunks for count in chunk.keys))

    def distances() -> torch.Tensor:
        steps = torch.arange(longest - 1, -_BLOCK, -1, device=query.device)
        return sqrt_bias(steps.new_zeros(1, dtype=torch.float32) if slopes is None else slopes, steps)

    line = row.once("bias by distance", distances)  # [heads or 1, longest + block - 1], from far to near to coming
    before = key.shape[2] - query.shape[2]
    outputs = []
    for start in range(0, query.shape[2], _BLOCK):
        end = min(start + _BLOCK, query.shape[2])
        seen = before + end
        # With the queries turned round, row i and column j are at distance seen - 1 - (i + j): every row of the bias is
        # the one above shifted by a place, so that a view of one line is all of it.
        bias = line.as_strided((len(line), end - start, seen), (line.stride(0), 1, 1), longest - seen)
        if query.is_cuda:
            bias = bias.to(query.dtype).contiguous()  # its kernels want rows that begin at round addresses
        mixed = F.scaled_dot_product_attention(
            query[:, :, start:end].flip(2),
            key[:, :, :seen],
            value[:, :, :seen],
            attn_mask=bias[None],
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        outputs.append(mixed.flip(2))
    return torch.cat(outputs, dim=2)


# --- flash attention of variable lengths ------------------------------------------------------------------------------


def varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    row: PackedRow,
    slopes: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """PyTorch's own flash kernel, a call a chunk; its causal mask is aligned to the last query and the last key."""
    from torch.nn.attention.varlen import varlen_attn  # half a second, for Dynamo

    assert slopes is None, "flash attention takes no bias"
    outputs = []
    for chunk, q in _by_chunk(row, query):
        mixed = varlen_attn(
            q,
            key[chunk.first_key : chunk.end],
            value[chunk.first_key : chunk.end],
            chunk.cu_queries,
            chunk.cu_keys,
            max(chunk.queries),
            max(chunk.keys),
            scale=scale,
            window_size=(-1, 0),
            enable_gqa=query.shape[1] != key.shape[1],
        )
        outputs.append(cast(torch.Tensor, mixed))  # a tuple only where more was asked for
    return _joined(outputs)


def transformer_engine(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    row: PackedRow,
    slopes: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """TransformerEngine's attention, a call a chunk. It picks among cuDNN's kernels and flash attention by itself."""
    assert slopes is None, "TransformerEngine has no sqrt-ALiBi"
    attend = _transformer_engine_attention(query.shape[1], key.shape[1], query.shape[2], scale)
    outputs = []
    for chunk, q in _by_chunk(row, query):
        mixed = attend(
            q.contiguous(),
            key[chunk.first_key : chunk.end].contiguous(),
            value[chunk.first_key : chunk.end].contiguous(),
            qkv_format="thd",
            cu_seqlens_q=chunk.cu_queries,
            cu_seqlens_kv=chunk.cu_keys,
            max_seqlen_q=max(chunk.queries),
            max_seqlen_kv=max(chunk.keys),
            attn_mask_type="padding_causal" if chunk.queries == chunk.keys else "padding_causal_bottom_right",
        )
        outputs.append(mixed.view(q.shape))
    return _joined(outputs)


@cache
def _transformer_engine_attention(heads: int, kv_heads: int, size: int, scale: float) -> Callable[..., torch.Tensor]:
    """One for all layers: it has no parameters, and as no layer owns it, it adds nothing to checkpoints."""
    from transformer_engine.pytorch import DotProductAttention

    return cast(
        Callable[..., torch.Tensor],
        DotProductAttention(
            heads,
            size,
            num_gqa_groups=kv_heads,
            attention_dropout=0.0,
            qkv_format="thd",
            attn_mask_type="padding_causal",
            softmax_scale=scale,
        ),
    )


def _by_chunk(row: PackedRow, query: torch.Tensor) -> Any:
    if len(row.chunks) == 1:  # a split into one would be joined again on the way back: a copy
        return [(row.chunks[0], query)]
    return zip(row.chunks, query.split([len(chunk) for chunk in row.chunks]), strict=True)


def _joined(outputs: list[torch.Tensor]) -> torch.Tensor:
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


# --- FlexAttention ----------------------------------------------------------------------------------------------------


def flex(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    row: PackedRow,
    slopes: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """One compiled kernel a row: blocks of keys that no query of a block sees are passed over, the bias is computed
    beside the scores. (Without a GPU it runs uncompiled, in full, and has no backward pass.)"""
    whole = len(row.chunks) == 1 and len(row.chunks[0]) == key.shape[0]
    places = None if whole else row.once("places", lambda: row.places)

    def place(q: Any) -> Any:
        return q if places is None else places[q]

    def masks() -> Any:
        samples = row.samples(key.shape[0])

        def visible(batch: Any, head: Any, q: Any, k: Any) -> Any:
            return (samples[place(q)] == samples[k]) & (k <= place(q))

        if whole:
            return causal_blocks(row.begins(key.shape[0]), visible)
        return _flex(query.is_cuda)[1](visible, None, None, query.shape[0], key.shape[0], device=query.device)

    def biased(score: Any, batch: Any, head: Any, q: Any, k: Any) -> Any:
        # d x 1/sqrt(d): an exact root takes a GPU a dozen instructions, 1/sqrt(d) one. Floats are converted a place,
        # where integers would be a pair. What lies ahead is masked later.
        steps = (place(q).float() - k.float()).abs()
        return score - slopes[head] * (steps * (steps + _TINY).rsqrt())  # type: ignore[index]

    mixed = _flex(query.is_cuda)[0](
        *(part.transpose(0, 1)[None] for part in (query, key, value)),
        score_mod=None if slopes is None else biased,
        block_mask=row.once("block mask", masks),
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
        kernel_options=WIDE if query.element_size() == 2 and query.shape[2] <= 64 else None,
    )
    return cast(torch.Tensor, mixed[0].transpose(0, 1))


_TINY = 1e-30  # of a place to itself: 0 x 1 / sqrt(1e-30) is 0, where 0 x 1 / sqrt(0) is no number
# For heads of 64 the compiler takes blocks of 128 x 128 and four warps. Registers then miss 424 bytes a thread of what
# the bias needs (sm_90; 1.3 kB with an exact root), on eight warps none: tests/test_gpu_ahead.py.
WIDE: Any = {"fwd_num_warps": 8}


@cache
def _flex(compiled: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """FlexAttention and the maker of its block masks; uncompiled, each makes the whole table of queries and keys.

    Compiled for the sizes at hand, which a run's rows have all alike; the compiler lets a size vary once it has seen
    another."""
    if not compiled:
        return flex_attention, create_block_mask
    return torch.compile(flex_attention), torch.compile(create_block_mask)


_KERNELS: dict[AttentionKernel, Kernel] = {
    AttentionKernel.sdpa: sdpa,
    AttentionKernel.varlen: varlen,
    AttentionKernel.flex: flex,
    AttentionKernel.te: transformer_engine,
}
