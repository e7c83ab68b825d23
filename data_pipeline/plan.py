"""Which text goes where in a corpus, and what of it is spoken: decided before anything is made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from configs.schema import CorpusConfig
from data_pipeline.corpus import SPLITS
from data_pipeline.sources import Document

CHARACTERS_PER_SECOND = 18.4  # how fast a voice reads, about; only sizes depend on it
TEXT_SHARD_CHARACTERS = 500_000


@dataclass(frozen=True)
class PlannedShard:
    """One shard's documents. `file` is relative to the corpus folder."""

    split: str
    file: str
    spoken: bool
    documents: tuple[Document, ...]

    @property
    def pieces(self) -> int:
        return sum(len(document.pieces) for document in self.documents)


def plan_shards(corpus: CorpusConfig, documents: list[Document]) -> list[PlannedShard]:
    """Shards of a corpus, the same for the same corpus settings and documents.

    Documents are drawn in a seeded order, each for one purpose only: spoken or unspoken, train or valid. Where a
    purpose has its share, the rest of its last document stays unused. A document that does not fit into a shard
    goes on in the next one under a new key. Text that runs out gives fewer shards.
    """
    order = np.random.default_rng(corpus.seed).permutation(len(documents))
    drawn = iter([documents[index] for index in order])
    a_minute = 60 * CHARACTERS_PER_SECOND
    kinds = (
        ("speech", corpus.speech_minutes * a_minute, corpus.shard_minutes * a_minute),
        ("text", corpus.text_characters, TEXT_SHARD_CHARACTERS),
    )
    shards: list[PlannedShard] = []
    for kind, characters, size in kinds:
        for split in reversed(SPLITS):
            share = corpus.validation_share if split == "valid" else 1 - corpus.validation_share
            for number, held in enumerate(_cut(drawn, characters * share, size)):
                shards.append(PlannedShard(split, f"{split}/{kind}-{number:06d}.tar", kind == "speech", held))
    return shards


def _cut(drawn: Iterator[Document], characters: float, size: float) -> Iterator[tuple[Document, ...]]:
    """Documents of `characters` in all, in runs of about `size`; both are reached, then passed by part of a piece."""
    held: list[Document] = []
    filled = taken = 0.0
    while taken < characters and (document := next(drawn, None)) is not None:
        key, part, pieces = document.key, 1, []
        for piece in document.pieces:
            pieces.append(piece)
            filled += len(piece)
            taken += len(piece)
            if taken >= characters:
                break
            if filled >= size:
                held.append(Document(key, tuple(pieces)))
                yield tuple(held)
                part += 1
                key, pieces, held, filled = f"{document.key}-part{part}", [], [], 0.0
        if pieces:
            held.append(Document(key, tuple(pieces)))
    if held:
        yield tuple(held)
