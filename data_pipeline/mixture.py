"""A mixture: sources and what they become, and whose turn it is, by shares of tokens at every level of nesting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import msgspec
import numpy as np

from configs.schema import Config, SourceConfig
from data_pipeline.answers import SourceAnswers, teacher_of
from data_pipeline.batch import Sample
from data_pipeline.corpus import Corpus
from data_pipeline.damage import DamageTally
from data_pipeline.documents import Documents
from data_pipeline.hearing import check_features, spoken_documents_suffice
from data_pipeline.layouts import Layout, check_same_columns, find_layout
from data_pipeline.order import Cursor, Order
from data_pipeline.packing import split_long
from data_pipeline.permutation import seed_of
from data_pipeline.remote.opening import corpus_at
from data_pipeline.sample_bytes import DamagedSample
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput

_NOT_DRAWN_FROM = np.random.default_rng(0)  # making one takes longer than many a layout


class Taken(NamedTuple):
    """How far one lane has come in one source: its cursor, and tokens taken."""

    epoch: int
    place: int
    tokens: int


@dataclass(frozen=True)
class Source:
    """One stream of the mixture: documents laid out one way, epoch after epoch, each epoch in its own order.

    `name` is the path to it, such as `speech.asr`. `epochs`: passes until it has nothing more; None: no end. `teacher`:
    whose answers samples have as a target.
    """

    name: str
    weight: float
    layout: Layout
    documents: Documents
    order: Order
    corpus_hash: str
    vocabulary: Vocabulary
    seed: int
    epochs: int | None
    teacher: SourceAnswers | None = None

    def begin(self, lane: int, lanes: int) -> Taken:
        """Where `lane` starts."""
        return Taken(*self.order.normal(Cursor(0, 0), lane, lanes), 0)

    def ended(self, taken: Taken) -> bool:
        return self.epochs is not None and taken.epoch >= self.epochs

    def read(self, taken: Taken, lane: int, lanes: int, length: int) -> tuple[list[Sample], Taken]:
        """What the lane's next document becomes, samples of at most `length` tokens, and how far it has come with it.

        Keys are `source/epoch/document/part`, the same on every topology.
        """
        cursor = Cursor(taken.epoch, taken.place)
        if self.documents.remote:
            self.documents.want(self.order.next_shards(cursor, lane, lanes))
        number = self.order.document(cursor, lane, lanes)
        samples = self.samples(number, cursor.epoch, length)
        after = self.order.normal(Cursor(cursor.epoch, cursor.place + 1), lane, lanes)
        return samples, Taken(*after, taken.tokens + sum(map(len, samples)))

    def samples(self, number: int, epoch: int, length: int) -> list[Sample]:
        """What document `number` becomes in an epoch, wherever in it that comes, with what a teacher says of it."""
        laid = self.laid(number, epoch, length)
        if self.teacher is not None and laid:
            shard = self.documents.shard_of(number)
            laid = [self.teacher.attach(sample, shard) for sample in laid]
        return [msgspec.structs.replace(sample, key=f"{self.name}/{epoch}/{sample.key}") for sample in laid]

    def laid(self, number: int, epoch: int, length: int) -> list[Sample]:
        """What a document becomes in an epoch: samples of at most `length` tokens, with keys `document/part`."""
        utterances = self.documents.read(number)
        laid = self._laid(utterances, self.draws(number, epoch), length) if utterances else []
        return [piece for sample in laid for piece in split_long(sample, length)]

    def draws(self, number: int, epoch: int) -> np.random.Generator:
        """What the layout of a document draws from in an epoch."""
        if not self.layout.draws:
            return _NOT_DRAWN_FROM
        return np.random.default_rng(seed_of(self.seed, self.name, epoch, number))

    def _laid(self, utterances: list[Utterance], rng: np.random.Generator, length: int) -> list[Sample]:
        """The samples of a document. One that the layout finds damaged gives none, and counts as damaged; those that
        are too long, and make no sense in pieces, count as too long."""
        try:
            laid = self.layout(utterances, self.vocabulary, rng)
        except DamagedSample as damaged:
            self._leave_out(damaged)
            return []
        if not self.layout.whole:
            return laid
        for sample in laid:
            if len(sample) > length:
                self._leave_out(DamagedSample("too_long", f"{sample.key}, {len(sample)} tokens"))
        return [sample for sample in laid if len(sample) <= length]

    def _leave_out(self, what: DamagedSample) -> None:
        self.documents.damage.add(DamagedSample(what.kind, f"source {self.name}: {what.where}"))
        self.documents.damage.judge()

    def describe(self) -> dict[str, Any]:
        """What decides this source's stream, JSON-ready."""
        return {
            "corpus": self.corpus_hash,
            "layout": self.layout.name,
            "options": self.layout.options,
            "filter": self.documents.filter,
            "epochs": self.epochs,
            "weight": self.weight,
        }

    def asked(self) -> dict[str, Any]:
        """What of this source a teacher's answers depend on, JSON-ready."""
        return {"corpus": self.corpus_hash, "layout": self.layout.name, "options": self.layout.options}


@dataclass(frozen=True)
class Mixture:
    """Sources and mixtures side by side, `weight` being the share of each in their tokens; the shares add up to 1."""

    name: str
    weight: float
    parts: tuple[Source | Mixture, ...]

    @cached_property
    def sources(self) -> tuple[Source, ...]:
        """All sources at all levels."""
        return tuple(source for source, _ in _leaves(self))

    @cached_property
    def shares(self) -> np.ndarray:
        """Each source's share of all tokens: float64 [sources]."""
        return np.array([share for _, share in _leaves(self)])

    @property
    def bounded(self) -> bool:
        """Whether every source ends."""
        return all(source.epochs is not None for source in self.sources)

    def neediest(self, taken: Mapping[str, Taken]) -> Source | None:
        """The source whose turn it is after `taken`, None where all have ended.

        From the top down, the part whose share of the tokens taken so far is furthest below its weight (the first such
        by name), of those that have not ended; these share out what the ended ones leave. Choosing it every time keeps
        each part of each level within one document of its share.
        """
        return self._standing(taken)[1]

    def _standing(self, taken: Mapping[str, Taken]) -> tuple[int, Source | None]:
        """Tokens of this mixture, and its neediest source."""
        standing: list[tuple[float, int, Source | None]] = []
        for part in self.parts:
            if isinstance(part, Mixture):
                standing.append((part.weight, *part._standing(taken)))
            else:
                held = taken[part.name]
                standing.append((part.weight, held.tokens, None if part.ended(held) else part))
        open_parts = [part for part in standing if part[2] is not None]
        tokens = sum(held for _, held, _ in standing)
        if not open_parts:
            return tokens, None
        shared, weights = 1 + sum(held for _, held, _ in open_parts), sum(weight for weight, _, _ in open_parts)
        return tokens, max(open_parts, key=lambda part: part[0] / weights * shared - part[1])[2]

    def describe(self) -> dict[str, Any]:
        """What decides this mixture's stream, JSON-ready."""
        return {"weight": self.weight, "sources": {part.name: part.describe() for part in self.parts}}


def _leaves(mixture: Mixture) -> Iterator[tuple[Source, float]]:
    for part in mixture.parts:
        if isinstance(part, Mixture):
            yield from ((source, part.weight * share) for source, share in _leaves(part))
        else:
            yield part, part.weight


# --- opening --------------------------------------------------------------------------------------------------------


def open_mixture(config: Config, corpus: Corpus, split: str, damage: DamageTally) -> Mixture:
    """`config.mixture` over one split; weights become shares, and a weight of 0 leaves a source out.

    `corpus` serves the sources that name none of their own. No shard is opened. Sources end after their `epochs` in
    training only: what validation measures is a fixed number of packs, in the same shares. Raises BadInput for a
    mixture, a layout or a filter that cannot be, and for a corpus that has another vocabulary or no documents for its
    layout.
    """
    mixture = _Opening(config, corpus, split, damage).mixture("", 1.0, config.mixture.sources)
    check_same_columns({source.name: source.layout for source in mixture.sources}, corpus.vocabulary)
    return mixture


class _Opening:
    def __init__(self, config: Config, corpus: Corpus, split: str, damage: DamageTally) -> None:
        self._config = config
        self._seed = config.train.seed
        self._block = config.loader.shuffle_documents
        self._split = split
        self._damage = damage
        self._corpora: dict[str | None, Corpus] = {None: corpus}
        self._teacher = teacher_of(config)

    def mixture(self, name: str, weight: float, sources: Mapping[str, SourceConfig]) -> Mixture:
        key = ".sources.".join(["mixture", *name.split(".")] if name else ["mixture"]) + ".sources"
        if any(source.weight < 0 for source in sources.values()):
            raise BadInput(f"{key} has a weight below 0; weights are shares of tokens")
        wanted = {inner: source for inner, source in sorted(sources.items()) if source.weight != 0}
        if not wanted:
            raise BadInput(f"{key} has no source with a weight above 0")
        total = sum(source.weight for source in wanted.values())
        parts: list[Source | Mixture] = []
        for inner, source in wanted.items():
            path, share = f"{name}.{inner}" if name else inner, source.weight / total
            parts.append(
                self.mixture(path, share, source.sources) if source.sources else self._source(path, share, source)
            )
        return Mixture(name, weight, tuple(parts))

    def _source(self, name: str, share: float, source: SourceConfig) -> Source:
        corpus = self._corpora[None]
        if source.corpus not in self._corpora:
            self._corpora[source.corpus] = Corpus.open(corpus_at(str(source.corpus), self._config))
        own = self._corpora[source.corpus]
        if own.vocabulary != corpus.vocabulary:
            raise BadInput(f"source {name}: {own.folder} has another vocabulary than the run's corpus {corpus.folder}")
        try:
            layout = find_layout(source.layout or "", source.options)
            layout.check(own.vocabulary)
            check_features(self._config, layout, own)
            spoken = layout.spoken or spoken_documents_suffice(layout, own)
            kinds = {"spoken": spoken, "whole": layout.of_whole_documents, "audio": layout.sounds}
            documents = Documents(own, self._split, self._damage, filter=source.filter, **kinds)
        except BadInput as error:
            raise BadInput(f"source {name}: {error}") from None
        if not len(documents):
            kind = "documents with speech" if spoken else "documents"
            raise BadInput(f"source {name}: {own.folder} has no {kind} in its {self._split} split")
        order = Order(documents.counts, seed=seed_of(self._seed, name), block=self._block)
        epochs = source.epochs if self._split == "train" else None
        opened = Source(name, share, layout, documents, order, own.content_hash, own.vocabulary, self._seed, epochs)
        if self._teacher is None:
            return opened
        return replace(opened, teacher=self._teacher.of_source(name, opened.asked(), own.vocabulary))
