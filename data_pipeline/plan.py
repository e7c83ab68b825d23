"""What goes into which shard of a corpus, and what of its text is spoken: decided before anything is made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import xxhash

from configs.schema import CorpusConfig
from data_pipeline.corpus import SPLITS
from data_pipeline.sources import Document
from data_pipeline.sources.recording import Recording, Segment

CHARACTERS_PER_SECOND = 18.4  # how fast a voice reads, about; only sizes depend on it
TEXT_SHARD_CHARACTERS = 500_000
UNKNOWN_SECONDS = 30.0  # what speech counts of which nothing tells the length; only sizes depend on it


@dataclass(frozen=True)
class PlannedShard:
    """One shard: documents, spoken by the corpus's voice or not, or else recordings. `file` is relative to the corpus
    folder."""

    split: str
    file: str
    spoken: bool
    documents: tuple[Document, ...] = ()
    recordings: tuple[Recording, ...] = ()

    @property
    def pieces(self) -> int:
        """Utterances that are planned: pieces of text, or segments, of which an uncut recording counts as one."""
        return sum(len(document.pieces) for document in self.documents) + sum(
            max(len(recording.segments), 1) for recording in self.recordings
        )

    @property
    def seconds(self) -> float:
        """Speech in it, about."""
        if self.recordings:
            return sum(map(seconds_of, self.recordings))
        return sum(document.characters for document in self.documents) / CHARACTERS_PER_SECOND if self.spoken else 0.0


def seconds_of(recording: Recording) -> float:
    """Seconds of speech that a recording will give, about: of its segments, else of all of it. Where a segment's end
    is not known its text tells."""
    if not recording.segments:
        return UNKNOWN_SECONDS if recording.duration is None else recording.duration
    return sum(_seconds_of(segment, recording.duration) for segment in recording.segments)


def _seconds_of(segment: Segment, duration: float | None) -> float:
    end = duration if segment.end is None else segment.end
    if end is not None:
        return max(end - segment.start, 0.0)
    return len(segment.text) / CHARACTERS_PER_SECOND if segment.text else UNKNOWN_SECONDS


# --- text -------------------------------------------------------------------------------------------------------


def plan_shards(corpus: CorpusConfig, documents: list[Document]) -> list[PlannedShard]:
    """Shards of a corpus made from text, the same for the same corpus settings and documents.

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


# --- recordings -------------------------------------------------------------------------------------------------


LARGEST = 4  # times `shard_minutes`: where a shard ends in spite of a document that goes on


def plan_recordings(corpus: CorpusConfig, recordings: Iterable[Recording]) -> Iterator[PlannedShard]:
    """Shards of a corpus of recorded speech, as they fill; holds the recordings of one shard a split and no more.

    Recordings keep their order and stay whole, and all of one document come into one shard, or into neighbours under
    names of their own where they are too many. A shard is full once about `shard_minutes` of speech are in it.
    """
    fillings = {split: _Filling(split, 60 * corpus.shard_minutes) for split in SPLITS}
    for recording in recordings:
        document = recording.document or recording.key
        filling = fillings[split_of(document, corpus)]
        if filling.is_full_before(document):
            yield filling.take()
        filling.add(document, recording)
    for filling in fillings.values():
        if filling.held:
            yield filling.take()


class _Filling:
    """The shard of a split that is being filled."""

    def __init__(self, split: str, seconds: float) -> None:
        self.held: list[Recording] = []
        self._split = split
        self._enough = seconds
        self._seconds = 0.0
        self._number = 0
        self._document = ""
        self._part = 1

    def is_full_before(self, document: str) -> bool:
        return self._seconds >= (LARGEST if document == self._document else 1) * self._enough

    def add(self, document: str, recording: Recording) -> None:
        if document != self._document:
            self._document, self._part = document, 1
        elif not self.held:
            self._part += 1
        named = document if self._part == 1 else f"{document}-part{self._part}"
        self.held.append(replace(recording, document=named))
        self._seconds += seconds_of(recording)

    def take(self) -> PlannedShard:
        file = f"{self._split}/speech-{self._number:06d}.tar"
        shard = PlannedShard(self._split, file, spoken=True, recordings=tuple(self.held))
        self.held, self._seconds = [], 0.0
        self._number += 1
        return shard


def split_of(document: str, corpus: CorpusConfig) -> str:
    """The split of a recorded document: decided by its key and the seed alone, so that no other one moves it."""
    drawn = xxhash.xxh3_64_intdigest(f"{corpus.seed} {document}".encode()) / 2**64
    return "valid" if drawn < corpus.validation_share else "train"
