"""The documents of one split of a corpus, by number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np

from data_pipeline.corpus import Corpus
from data_pipeline.damage import DamageTally
from data_pipeline.layouts.groups import check_codes
from data_pipeline.remote.mirror import Ahead, mirror_of
from data_pipeline.shards import DamagedSample, ShardReader, read_index
from data_pipeline.utterance import Utterance
from runtime.exits import BadInput

if TYPE_CHECKING:
    from data_pipeline.quality.filters import Filter

OPEN_SHARDS = 128  # file handles and indexes kept


class Documents:
    """Numbered access to documents. The numbers come from the manifest, so damage on disk moves none of them.

    `counts`: documents of each shard, int64 [shards]. `files`: the shards, as the manifest names them. `spoken`: count
    only documents with speech. `filter`: an expression over columns of the index; utterances that it drops are not
    read, and a document may have none left. `whole`: a document has all its utterances, or none: not some that are
    undamaged and pass the filter. `audio`: they come with their sound, where the corpus keeps it.
    """

    def __init__(
        self,
        corpus: Corpus,
        split: str,
        damage: DamageTally,
        *,
        spoken: bool,
        filter: str | None = None,
        whole: bool = False,
        audio: bool = False,
    ) -> None:
        self._whole = whole
        self._audio = audio
        self.filter = filter
        self._keeps = None if filter is None else _parse(filter)
        self._corpus = corpus
        self._shards = corpus.shards(split)
        self.files = [str(entry["file"]) for entry in corpus.splits[split]]
        self._spoken = spoken
        self.damage = damage
        key = "spoken_documents" if spoken else "documents"
        self.counts = np.array([entry[key] for entry in corpus.splits[split]], np.int64)
        self._ends = np.cumsum(self.counts)
        self._reader = lru_cache(OPEN_SHARDS)(self._open)
        self._kept = lru_cache(OPEN_SHARDS)(self._kept_of)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def shard_of(self, number: int) -> str:
        """The shard of document `number`, as the manifest names it."""
        return self.files[int(np.searchsorted(self._ends, number, side="right"))]

    def numbers_in(self, shard: str) -> range:
        """The documents of a shard, as the manifest names it."""
        at = self.files.index(shard)
        return range(int(self._ends[at] - self.counts[at]), int(self._ends[at]))

    def read(self, number: int) -> list[Utterance]:
        """The utterances of document `number`, in order. Damaged ones are counted and left out."""
        shard = int(self._ends.searchsorted(number, side="right"))
        reader = self._reader(shard)
        first = int(self._ends[shard - 1]) if shard else 0
        if isinstance(reader, ShardReader):
            index = reader.index
            rows = index.spoken_documents if self._spoken else index.documents
            if number - first < len(rows):
                begin, end = rows[number - first].tolist()
                samples: Sequence[int] = range(begin, end)
                if self._keeps is not None:
                    kept = self._kept(shard, reader)
                    samples = [sample for sample in samples if kept[sample]]
                    if self._whole and len(samples) < end - begin:
                        return []
                return self._read_all(reader, samples) if samples else []
            reader = DamagedSample("index", f"{reader.path} document {number - first}")
        self.damage.read += 1
        self.damage.add(reader)
        self.damage.judge()
        return []

    @cached_property
    def remote(self) -> bool:
        """Whether the shards come from a storage, as they are needed."""
        return bool(self._shards) and mirror_of(self._shards[0]) is not None

    def want(self, shards: Sequence[int]) -> None:
        """Have `shards` fetched in the background: their documents will soon be read."""
        for shard in shards:
            self._ahead.want(self._shards[shard])

    @cached_property
    def _ahead(self) -> Ahead:
        return Ahead(lambda shard: ShardReader(shard).close())

    def _read_all(self, reader: ShardReader, samples: Sequence[int]) -> list[Utterance]:
        read = []
        for sample in samples:
            self.damage.read += 1
            try:
                utterance = reader.read(sample)
                check_codes(utterance, self._corpus.vocabulary)
                read.append(replace(utterance, audio=reader.read_audio(sample)) if self._audio else utterance)
            except DamagedSample as damaged:
                self.damage.add(damaged)
            except BadInput:
                self.damage.add(DamagedSample("codes", f"{reader.path} sample {sample}"))
        self.damage.judge()
        self._corpus.vocabulary.know({utterance.text: utterance.ids for utterance in read if utterance.ids})
        return [] if self._whole and len(read) < len(samples) else read

    def _open(self, shard: int) -> ShardReader | DamagedSample:
        """The shard's reader, or what is wrong with it, so that a missing shard is looked for once."""
        try:
            return ShardReader(self._shards[shard])
        except DamagedSample as damaged:
            return damaged

    def _kept_of(self, shard: int, reader: ShardReader) -> np.ndarray:
        """Which utterances of the shard the filter keeps: bool [samples]. A column that this shard lacks is missing in
        all of it; one that no shard has is refused."""
        assert self._keeps is not None
        try:
            return self._keeps.keep(reader.index)
        except BadInput:
            return self._keeps.keep(reader.index, self._all_columns)

    @cached_property
    def _all_columns(self) -> frozenset[str]:
        """The columns of all shards that can be read."""
        columns: set[str] = set()
        for shard in self._shards:
            try:
                columns |= set(read_index(shard).columns)
            except DamagedSample:
                continue  # counted when one of its documents is read
        return frozenset(columns)


def _parse(expression: str) -> Filter:
    from data_pipeline.quality.filters import parse_filter

    return parse_filter(expression)
