"""Step-1 for transformers, which does not have it: Llama whose scores know distance by sqrt-ALiBi, not by rotations.

So what is trained in that shape can be generated from, evaluated and checked like any other export, by libraries that
share no line with the model that is trained. `register` makes the Auto classes know it; a folder's own code is not run.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from configs.alibi import alibi_slopes

_ATTENTION = "megaphone_sqrt_alibi"
_QUERIES = 512  # at once: a bias for every head, query and key is much larger than the keys


@strict
class Step1Config(LlamaConfig):
    """Under the names of its published config.json."""

    model_type = "step1"
    attribute_map = {"num_key_value_heads": "num_attention_groups", "max_position_embeddings": "max_seq_len"}

    num_attention_groups: int | None = None
    max_seq_len: int = 2048
    rms_norm_eps: float = 1e-5


class Step1ForCausalLM(LlamaForCausalLM):
    config_class = Step1Config

    def __init__(self, config: Step1Config) -> None:
        super().__init__(config)
        config._attn_implementation = _ATTENTION
        self.model.rotary_emb = _NoRotation()


class _NoRotation(nn.Module):
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine of no angle, that go with all heads and places."""
        return x.new_ones(1, 1, 1), x.new_zeros(1, 1, 1)


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """query [B, heads, Q, size], the last Q of K places; key, value [B, groups, K, size]; attention_mask: bool
    [B, 1, Q, K], None: causal. Returns [B, Q, heads, size]."""
    queries, keys = query.shape[2], key.shape[2]
    slopes = query.new_tensor(alibi_slopes(query.shape[1]), dtype=torch.float32)[:, None, None]
    places = torch.arange(keys, device=query.device)
    parts = []
    for first in range(0, queries, _QUERIES):
        own = places[keys - queries + first : keys - queries + min(first + _QUERIES, queries), None]
        bias = -slopes * (own - places).clamp(min=0).float().sqrt()
        seen = own >= places if attention_mask is None else attention_mask[:, :, first : first + _QUERIES]
        parts.append(
            scaled_dot_product_attention(
                query[:, :, first : first + _QUERIES],
                key,
                value,
                attn_mask=bias[None].masked_fill(~seen, -torch.inf).to(query.dtype),
                scale=scaling,
                enable_gqa=True,
            )
        )
    return torch.cat(parts, dim=2).transpose(1, 2), None


@cache
def register() -> None:
    """Make `AutoConfig` and `AutoModelForCausalLM` know model type step1."""
    AttentionInterface.register(_ATTENTION, _attend)
    AttentionMaskInterface.register(_ATTENTION, sdpa_mask)
    AutoConfig.register(Step1Config.model_type, Step1Config)
    AutoModelForCausalLM.register(Step1Config, Step1ForCausalLM)
