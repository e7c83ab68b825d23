"""The corpus that loaders are timed on: seeded utterances of 5 to 14 seconds, five a document, without sound."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from data_pipeline.corpus import write_manifest
from data_pipeline.shards import ShardWriter
from data_pipeline.utterance import Utterance, Word
from data_pipeline.vocabulary import Codebook, Vocabulary
from tests.data_pipeline.synthetic import SPECIALS, WORDS, make_vocabulary

BOOKS = (Codebook("linguistic", 1024, 50 / 3, 2), Codebook("semantic", 4096, 25.0, 3))
DOCUMENT, SHARD = 5, 1000  # utterances of each


def utterance(rng: np.random.Generator, number: int) -> Utterance:
    duration = float(rng.uniform(5, 14))
    words = rng.choice(WORDS, round(2.6 * duration)).tolist()
    times = np.linspace(0.1, duration - 0.3, len(words)).round(3).tolist()
    return Utterance(
        key=f"u{number:09d}",
        text=" ".join(words),
        document=f"d{number // DOCUMENT:09d}",
        speaker=f"speaker-{number % 97}",
        duration=duration,
        words=tuple(Word(word, at, at + 0.25) for word, at in zip(words, times, strict=True)),
        source="synthetic",
        licence="CC0-1.0",
        codes={book.name: rng.integers(0, book.size, (1, int(duration * book.rate))) for book in BOOKS},
    )


def make(folder: Path, utterances: int) -> Path:
    """Write a corpus of that many training utterances to `folder`, which is returned."""
    rng = np.random.default_rng(0)
    base = make_vocabulary()
    vocabulary = Vocabulary(base.text_size, SPECIALS, BOOKS, base.tokenizer_json)
    for first in range(0, utterances, SHARD):
        with ShardWriter(folder / "train" / f"shard-{first // SHARD:06d}.tar", vocabulary) as shard:
            for number in range(first, min(first + SHARD, utterances)):
                shard.write(utterance(rng, number))
    with ShardWriter(folder / "valid" / "shard-000000.tar", vocabulary) as shard:
        shard.write(utterance(rng, utterances))
    write_manifest(folder, name="timed", vocabulary=vocabulary, codecs={})
    return folder


if __name__ == "__main__":
    make(Path(sys.argv[1]), int(sys.argv[2]))
