"""The order of one source's documents: a function of seed, epoch, lane and place, near to near on disk."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from data_pipeline.permutation import permuted, seed_of, shuffled

EPOCHS_KEPT = 4  # shard orders held at a time; the lanes of a rank stand in one epoch or the next


class Cursor(NamedTuple):
    """Where a lane stands in a source: `place` documents of its slice of `epoch` are read."""

    epoch: int
    place: int


class Order:
    """Which document stands where, for `counts[s]` documents in shard s.

    Each epoch puts the shards in another order, and their documents, in that order of shards, make one sequence. Of L
    lanes, one owns the slice from N*k//L to N*(k+1)//L, with k = (lane + epoch) mod L: so all documents come once an
    epoch, and every lane meets documents within L epochs, however few there are. In a slice, documents are shuffled in
    blocks of `block`, so that a lane has few shards in hand at a time; a shorter slice is shuffled as a whole.
    """

    def __init__(self, counts: Sequence[int] | np.ndarray, *, seed: int, block: int) -> None:
        self._counts = np.asarray(counts, np.int64)
        self._firsts = np.cumsum(self._counts) - self._counts
        self._total = int(self._counts.sum())
        self._seed = seed
        self._block = block
        self._shards = lru_cache(EPOCHS_KEPT)(self._shards_of)

    def normal(self, cursor: Cursor, lane: int, lanes: int) -> Cursor:
        """`cursor`, or the start of the lane's next slice that has documents, where this one's are all read."""
        epoch, place = cursor
        while place >= self._slice(epoch, lane, lanes)[1]:
            epoch, place = epoch + 1, 0
        return Cursor(epoch, place)

    def document(self, cursor: Cursor, lane: int, lanes: int) -> int:
        """The number of the document at a normal cursor, by the shards' own order."""
        begin, size = self._slice(cursor.epoch, lane, lanes)
        block, within = divmod(cursor.place, self._block)
        begin += block * self._block
        length = min(self._block, size - block * self._block)
        position = begin + permuted(within, length, seed_of(self._seed, cursor.epoch, begin))
        shards, ends = self._shards(cursor.epoch)
        turn = int(ends.searchsorted(position, side="right"))
        shard = shards[turn]
        return int(self._firsts[shard] + position - (ends[turn] - self._counts[shard]))

    def next_shards(self, cursor: Cursor, lane: int, lanes: int) -> list[int]:
        """Shards of the block that the lane reads after the one that a normal `cursor` begins; none inside a block."""
        block, within = divmod(cursor.place, self._block)
        if within:
            return []
        ahead = self.normal(Cursor(cursor.epoch, (block + 1) * self._block), lane, lanes)
        begin, size = self._slice(ahead.epoch, lane, lanes)
        first, last = begin + ahead.place, begin + min(ahead.place + self._block, size) - 1
        shards, ends = self._shards(ahead.epoch)
        turns = np.searchsorted(ends, [first, last], side="right")
        return [int(shard) for shard in shards[turns[0] : turns[1] + 1] if self._counts[shard]]

    def _slice(self, epoch: int, lane: int, lanes: int) -> tuple[int, int]:
        """First position of the lane's slice in the epoch's sequence, and its length."""
        number = (lane + epoch) % lanes
        begin = self._total * number // lanes
        return begin, self._total * (number + 1) // lanes - begin

    def _shards_of(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Shards in the epoch's order, and the end of each in the sequence: int64 [shards]."""
        shards = shuffled(len(self._counts), seed_of(self._seed, "shards", epoch))
        return shards, np.cumsum(self._counts[shards])
