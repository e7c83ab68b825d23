"""Samples packed into rows to be read together, and what is said of their places given back sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch

from data_pipeline.batch import Batch, Pack, collate
from data_pipeline.packing import best_fit
from data_pipeline.vocabulary import Vocabulary
from train.models.heads.likeliest import AskedRange, Likeliest

STEP = 64
"""Rows are a multiple of so many tokens: kernels that are compiled for a length see few of them, and every
tensor-parallel size up to it has an equal share."""
_PADDING = 0  # an id; nobody looks at it


class Reading(NamedTuple):
    """A sample to read. ids: int64 [T]; places: int64 [n], ascending and below T - 1, that are asked about the token
    after each."""

    ids: np.ndarray
    places: np.ndarray


class Said(NamedTuple):
    """Of a sample's n places. ids: int64 [n, k], likeliest first, -1 where a table has fewer; log_chances: float32
    [n, k]."""

    ids: np.ndarray
    log_chances: np.ndarray


@dataclass(frozen=True)
class Row:
    """samples: numbers of those that it has, in order. ranges: tables that are due, and at which of the row's places.
    order: int64, of each of these, in order of the ranges, its number among the samples' own."""

    samples: tuple[int, ...]
    batch: Batch
    ranges: tuple[AskedRange, ...]
    order: np.ndarray


def lay(readings: Sequence[Reading], vocabulary: Vocabulary, length: int, multiple: int = 1) -> list[Row]:
    """Rows of one length, at most `length` tokens before they are rounded up, or those of a longer sample; in number a
    multiple of `multiple`, the last ones perhaps empty. Samples see nothing of each other."""
    sizes = [len(reading.ids) for reading in readings]
    shared = best_fit(sizes, max(length, *sizes))
    longest = max(sum(sizes[number] for number in members) for members in shared)
    width = -(-longest // STEP) * STEP
    shared += [[]] * (-len(shared) % multiple)
    return [_row(members, [readings[number] for number in members], vocabulary, width) for members in shared]


def said(rows: Sequence[Row], found: Sequence[Sequence[Likeliest]], readings: Sequence[Reading]) -> list[Said]:
    """By sample what was `found` by row and range."""
    by_sample: dict[int, Said] = {}
    for row, parts in zip(rows, found, strict=True):
        if not row.samples:
            continue
        back = torch.from_numpy(np.argsort(row.order))
        ids = torch.cat([part.ids.cpu() for part in parts])[back].numpy()
        log_chances = torch.cat([part.log_chances.cpu() for part in parts])[back].numpy()
        ends = list(accumulate(len(readings[number].places) for number in row.samples))
        for number, end in zip(row.samples, ends, strict=True):
            own = slice(end - len(readings[number].places), end)
            by_sample[number] = Said(ids[own], log_chances[own])
    return [by_sample[number] for number in range(len(readings))]


def _row(members: Sequence[int], readings: Sequence[Reading], vocabulary: Vocabulary, width: int) -> Row:
    lengths = [len(reading.ids) for reading in readings]
    padding = width - sum(lengths)
    tokens = np.concatenate([*(reading.ids for reading in readings), np.full(padding, _PADDING, np.int64)])
    starts = [0, *accumulate(lengths)]
    places = np.concatenate(
        [np.zeros(0, np.int64), *(reading.places + start for reading, start in zip(readings, starts, strict=False))]
    )
    due = vocabulary.table_of(tokens[places + 1])
    numbers = [(vocabulary.tables[table], np.flatnonzero(due == table)) for table in np.unique(due)]
    none, text = np.zeros(width, np.float32), np.zeros(width, np.uint8)
    parts = (*lengths, padding) if padding else tuple(lengths)
    return Row(
        samples=tuple(members),
        batch=collate([Pack(tokens, tokens, none, text, parts, ("",) * len(lengths), padding, 0.0)]),
        ranges=tuple(AskedRange(ids.start, ids.stop, torch.from_numpy(places[own])) for ids, own in numbers),
        order=np.concatenate([np.zeros(0, np.int64), *(own for _, own in numbers)]),
    )
