"""The module that stands in Megatron's place for core attention."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule

from configs.alibi import alibi_slopes
from configs.schema import Positions
from train.models.attention.context import gather_keys
from train.models.attention.kernels import kernel_of
from train.models.attention.positions import rotary_frequencies, rotary_tables, rotate_both
from train.models.attention.row import PackedRow
from train.models.trunk_config import TrunkConfig


class PackedAttention(MegatronModule):
    """Drop-in `core_attention` for Megatron's SelfAttention: packed rows only, with positions applied here.

    Heads arrive split over the tensor-parallel ranks, places over the context-parallel ones; keys and values of the
    whole row are gathered from the latter.
    """

    def __init__(
        self,
        config: TrunkConfig,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        softmax_scale: float | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        **_: object,
    ) -> None:
        super().__init__(config=config)
        groups = pg_collection or ProcessGroupCollection.use_mpu_process_groups(required_pgs=["tp", "cp"])
        self._context = groups.cp
        size = config.kv_channels
        self._scale = softmax_scale or size**-0.5
        self._positions = config.positions
        self._interleaved = config.rope_interleaved
        rotated = round(size * config.rope_share)
        self._frequencies, self._factor = rotary_frequencies(rotated, config.rope_base, config.rope_scaling)
        self._kernel = kernel_of(config.kernel)
        # Frequencies, and slopes of this rank's heads. No buffers: casting the model to bf16 would cast them. They go
        # to the device with the first pass: sent once a row, they would make the host wait each time.
        tensor_rank, tensor_size = groups.tp.rank(), groups.tp.size()
        heads = config.num_attention_heads // tensor_size
        slopes = alibi_slopes(config.num_attention_heads)[tensor_rank * heads : (tensor_rank + 1) * heads]
        self._slopes = torch.tensor(slopes, device="cpu")

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
        """query [n, heads, size], key and value [n, kv_heads, size] -> [n, heads * size]."""
        row = packed_seq_params
        if not isinstance(row, PackedRow):
            raise ValueError("PackedAttention needs a PackedRow: give one sample as a pack of one")
        slopes = None
        if self._slopes.device != query.device:
            self._frequencies, self._slopes = self._frequencies.to(query.device), self._slopes.to(query.device)
        if self._positions is Positions.rope:
            tables = row.once(
                "rotary", lambda: rotary_tables(row.positions, self._frequencies, self._factor, query.dtype)
            )
            query, key = rotate_both(query, key, tables, self._interleaved)
        elif self._positions is Positions.sqrt_alibi:
            slopes = self._slopes
        if self._context.size() > 1:
            key, value = gather_keys(key, value, self._context)
        mixed = self._kernel(query, key, value, row, slopes, self._scale)
        return mixed.reshape(mixed.shape[0], -1)
