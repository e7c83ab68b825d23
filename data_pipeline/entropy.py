"""How surprising a corpus's audio codes are to someone who knows only how often each occurs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data_pipeline.corpus import Corpus
from data_pipeline.layouts.groups import check_codes
from data_pipeline.looking.survey import entropy, spread_samples
from data_pipeline.shards import DamagedSample, ShardReader
from data_pipeline.utterance import Utterance
from runtime.exits import BadInput

MOST_READ = 100_000  # samples of a split; of a larger one so many are read, spread evenly over it


def unigram_entropy(corpus: Corpus, split: str) -> dict[str, float]:
    """Entropy H = -sum p ln p of the split's own unigram distributions, in nats a token.

    "audio" is over all audio codes as one alphabet, in the shares that whole groups lay them out with; each
    codebook is over its own codes, those of all its rows. A split without speech gives 0. Damaged samples are left out.
    """
    counts = count_codes(corpus, split)
    return {"audio": entropy(np.concatenate([*counts.values(), np.zeros(0, np.int64)]))} | {
        name: entropy(count) for name, count in counts.items()
    }


def count_codes(corpus: Corpus, split: str) -> dict[str, np.ndarray]:
    """How often each code stands in a whole group: int64 [entries] by codebook, row after row."""
    books = corpus.vocabulary.codebooks
    counts = {book.name: np.zeros((book.rows, book.size), np.int64) for book in books}
    for utterance in _whole(corpus, split) if books else ():
        groups = min(utterance.codes[book.name].shape[1] // book.per_group for book in books)
        for book in books:
            for row, codes in enumerate(utterance.codes[book.name][:, : groups * book.per_group]):
                counts[book.name][row] += np.bincount(codes, minlength=book.size)
    return {name: count.reshape(-1) for name, count in counts.items()}


def _whole(corpus: Corpus, split: str) -> Iterator[Utterance]:
    """Spoken utterances of at most MOST_READ samples, without those that are damaged."""
    for shard, ordinals in spread_samples(corpus, split, MOST_READ):
        try:
            with ShardReader(shard) as reader:
                spoken = reader.index.spoken
                for ordinal in ordinals:
                    if ordinal < len(spoken) and spoken[ordinal]:
                        utterance = _usable(reader, ordinal, corpus)
                        if utterance is not None:
                            yield utterance
        except DamagedSample:  # of the whole shard
            continue


def _usable(reader: ShardReader, ordinal: int, corpus: Corpus) -> Utterance | None:
    try:
        utterance = reader.read(ordinal)
        check_codes(utterance, corpus.vocabulary)
    except (DamagedSample, BadInput):
        return None
    return utterance
