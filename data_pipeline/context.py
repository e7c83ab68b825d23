"""A context-parallel rank's part of a batch."""

from __future__ import annotations

from dataclasses import replace

import torch

from data_pipeline.batch import Batch, TargetRow
from data_pipeline.chunks import chunk_of


def spans(places: int, rank: int, ranks: int) -> list[tuple[int, int]]:
    """The two runs of places, of a row's `places`, that `rank` of `ranks` has: one from each end, counted inwards.

    Later tokens attend to more than earlier ones; an early and a late run together cost the same on every rank.
    """
    if places % (2 * ranks):
        raise ValueError(f"a row of {places} places does not divide into 2 x {ranks} runs")
    size = places // (2 * ranks)
    return [(turn * size, (turn + 1) * size) for turn in (rank, 2 * ranks - 1 - rank)]


def share_of(batch: Batch, rank: int, ranks: int) -> Batch:
    """What `rank` of `ranks` context-parallel ranks computes of `batch`, a whole row on the CPU.

    Places are cut; `cu_seqlens` and `longest` go on describing the whole row, whose keys all ranks share. Summed over
    the ranks, losses and counts are the row's.
    """
    if ranks == 1:
        return batch
    if batch.splices:
        raise ValueError("feature slots cannot be cut for context parallelism")
    mine = spans(batch.tokens.shape[1], rank, ranks)
    lengths = torch.diff(batch.cu_seqlens).tolist()

    def part(row: torch.Tensor) -> torch.Tensor:
        return torch.cat([row[:, start:end] for start, end in mine], dim=1)

    return replace(
        batch,
        tokens=part(batch.tokens),
        labels=part(batch.labels),
        positions=part(batch.positions),
        loss_weight=part(batch.loss_weight),
        label_modality=part(batch.label_modality),
        packs=None if batch.packs is None else part(batch.packs),
        sources=None if batch.sources is None else part(batch.sources),
        chunks=tuple(chunk_of(lengths, start, end) for start, end in mine),
        targets={name: TargetRow(part(row.values), part(row.weight)) for name, row in batch.targets.items()},
    )


def whole_row(parts: torch.Tensor) -> torch.Tensor:
    """Puts what the ranks hold back into the row's order: [ranks, n, ...] -> [ranks x n, ...]."""
    early, late = parts.unflatten(1, (2, -1)).unbind(1)
    return torch.cat([early, late.flip(0)]).flatten(0, 1)


def shares_of_row(row: torch.Tensor, ranks: int) -> torch.Tensor:
    """The inverse of `whole_row`: [ranks x n, ...] -> [ranks, n, ...]."""
    early, late = row.unflatten(0, (2 * ranks, -1)).chunk(2)
    return torch.stack([early, late.flip(0)], dim=1).flatten(1, 2)
