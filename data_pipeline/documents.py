"""The documents of one split of a corpus, by number."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from data_pipeline.corpus import Corpus
from data_pipeline.damage import DamageTally
from data_pipeline.layouts.groups import check_codes
from data_pipeline.shards import DamagedSample, ShardReader
from data_pipeline.utterance import Utterance
from runtime.exits import BadInput

OPEN_SHARDS = 128  # file handles and indexes kept


class Documents:
    """Numbered access to documents. The numbers come from the manifest, so damage on disk moves none of them.

    `spoken`: count only documents with speech.
    """

    def __init__(self, corpus: Corpus, split: str, damage: DamageTally, *, spoken: bool) -> None:
        self._corpus = corpus
        self._shards = corpus.shards(split)
        self._spoken = spoken
        self._damage = damage
        counts = [entry["spoken_documents" if spoken else "documents"] for entry in corpus.splits[split]]
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._reader = lru_cache(OPEN_SHARDS)(self._open)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, number: int) -> list[Utterance]:
        """The utterances of document `number`, in order. Damaged ones are counted and left out."""
        shard = int(np.searchsorted(self._ends, number, side="right"))
        reader = self._reader(shard)
        first = int(self._ends[shard - 1]) if shard else 0
        if isinstance(reader, ShardReader):
            index = reader.index
            rows = index.spoken_documents if self._spoken else index.documents
            if number - first < len(rows):
                begin, end = rows[number - first].tolist()
                return self._read_all(reader, range(begin, end))
            reader = DamagedSample("index", f"{reader.path} document {number - first}")
        self._damage.read += 1
        self._damage.add(reader)
        self._damage.judge()
        return []

    def _read_all(self, reader: ShardReader, samples: range) -> list[Utterance]:
        whole = []
        for sample in samples:
            self._damage.read += 1
            try:
                utterance = reader.read(sample)
                check_codes(utterance, self._corpus.vocabulary)
                whole.append(utterance)
            except DamagedSample as damaged:
                self._damage.add(damaged)
            except BadInput:
                self._damage.add(DamagedSample("codes", f"{reader.path} sample {sample}"))
        self._damage.judge()
        return whole

    def _open(self, shard: int) -> ShardReader | DamagedSample:
        """The shard's reader, or what is wrong with it, so that a missing shard is looked for once."""
        try:
            return ShardReader(self._shards[shard])
        except DamagedSample as damaged:
            return damaged
