"""How surprising a corpus's audio codes are to someone who knows only how often each occurs."""

from __future__ import annotations

import numpy as np

from data_pipeline.corpus import Corpus
from data_pipeline.shards import DamagedSample, ShardReader


def unigram_entropy(corpus: Corpus, split: str) -> dict[str, float]:
    """Entropy H = -sum p ln p of the split's own unigram distributions, in nats a token.

    "audio" is over all audio codes as one alphabet, in the shares that whole groups lay them out with; each
    codebook is over its own codes. A split without speech gives 0. Damaged samples are left out.
    """
    counts = count_codes(corpus, split)
    return {"audio": _entropy(np.concatenate([*counts.values(), np.zeros(0, np.int64)]))} | {
        name: _entropy(count) for name, count in counts.items()
    }


def count_codes(corpus: Corpus, split: str) -> dict[str, np.ndarray]:
    """How often each code stands in a whole group: int64 [entries] by codebook."""
    books = corpus.vocabulary.codebooks
    counts = {book.name: np.zeros(book.size, np.int64) for book in books}
    for shard in corpus.shards(split):
        try:
            with ShardReader(shard) as reader:
                for sample in np.flatnonzero(reader.index.spoken).tolist():
                    try:
                        codes = reader.read(sample).codes
                    except DamagedSample:
                        continue
                    groups = min(codes[book.name].shape[1] // book.per_group for book in books)
                    for book in books:
                        used = codes[book.name][0, : groups * book.per_group]
                        counts[book.name] += np.bincount(used, minlength=book.size)
        except DamagedSample:  # of the whole shard
            continue
    return counts


def _entropy(counts: np.ndarray) -> float:
    """-sum p ln p of p = counts / sum(counts), 0 where nothing was counted."""
    if not counts.sum():
        return 0.0
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())
