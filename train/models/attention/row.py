"""A packed row as attention sees it, handed through Megatron's layers in place of its own packing parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams

from data_pipeline.batch import Batch
from data_pipeline.chunks import Chunk


@dataclass
class PackedRow(PackedSeqParams):
    """The places of a row that this rank has, and what they attend to.

    positions: int64 [n], each token's place in its sample. chunks: those n places in order, and their keys among the
    whole row's. The parameters inherited describe the whole row.
    """

    positions: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    chunks: tuple[Chunk, ...] = ()
    _kept: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returns, made by the first layer that asks for `name` and kept for the others."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    @property
    def places(self) -> torch.Tensor:
        """Where in the whole row this rank's tokens are: int64 [n]."""
        device = self.positions.device
        return torch.cat([torch.arange(chunk.start, chunk.end, device=device) for chunk in self.chunks])

    def samples(self, length: int) -> torch.Tensor:
        """The sample that each of the `length` places of the whole row belongs to: int64 [length]."""
        every = torch.arange(length, device=self.positions.device)
        return torch.searchsorted(self.cu_seqlens_q, every, right=True)

    def begins(self, length: int) -> torch.Tensor:
        """Where that sample begins in the row: int64 [length]."""
        assert self.cu_seqlens_q is not None
        return self.cu_seqlens_q[self.samples(length) - 1].long()


def packed_row(batch: Batch) -> PackedRow:
    """What attention needs to know of `batch`, on its device."""
    return PackedRow(
        qkv_format="thd",
        cu_seqlens_q=batch.cu_seqlens,
        cu_seqlens_kv=batch.cu_seqlens,
        max_seqlen_q=batch.longest,
        max_seqlen_kv=batch.longest,
        positions=batch.positions[0],
        chunks=batch.chunks,
    )
