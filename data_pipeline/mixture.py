"""The sources of a mixture, and the order of one source's documents: a function of seed, source and place alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from configs.schema import Config
from data_pipeline.batch import Sample
from data_pipeline.corpus import Corpus
from data_pipeline.damage import DamageTally
from data_pipeline.documents import Documents
from data_pipeline.layouts import Layout, check_same_columns, find_layout
from data_pipeline.packing import split_long
from data_pipeline.permutation import permuted, seed_of
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput


@dataclass(frozen=True)
class Source:
    """One stream of the mixture: documents laid out one way, epoch after epoch, each epoch in its own order."""

    name: str
    weight: float
    layout: Layout
    documents: Documents
    corpus_hash: str
    vocabulary: Vocabulary
    seed: int

    def samples(self, place: int, length: int) -> list[Sample]:
        """What the document at `place` of the endless stream becomes: samples of at most `length` tokens.

        Keys are `source/epoch/document/part`, the same on every topology.
        """
        epoch, index = divmod(place, len(self.documents))
        number = permuted(index, len(self.documents), seed_of(self.seed, self.name, epoch))
        rng = np.random.default_rng(seed_of(self.seed, self.name, epoch, number))
        laid = self.layout(self.documents.read(number), self.vocabulary, rng)
        named = (replace(sample, key=f"{self.name}/{epoch}/{sample.key}") for sample in laid)
        return [piece for sample in named for piece in split_long(sample, length)]

    def describe(self) -> dict[str, Any]:
        """What decides this source's stream, JSON-ready."""
        return {
            "corpus": self.corpus_hash,
            "layout": self.layout.name,
            "options": self.layout.options,
            "weight": self.weight,
        }


def open_sources(config: Config, corpus: Corpus, split: str, damage: DamageTally) -> list[Source]:
    """The sources of `config.mixture` with a weight above 0, by name. Weights are normalised to shares.

    `corpus` serves the sources that name none of their own. Raises BadInput for a mixture or a layout that cannot
    be, and for a corpus that has another vocabulary or no documents for its layout.
    """
    wanted = {name: source for name, source in sorted(config.mixture.sources.items()) if source.weight != 0}
    if not wanted:
        raise BadInput("mixture.sources has no source with a weight above 0")
    if any(source.weight < 0 for source in wanted.values()):
        raise BadInput("mixture.sources has a weight below 0; weights are shares of tokens")
    total = sum(source.weight for source in wanted.values())
    opened: dict[str | None, Corpus] = {None: corpus}
    sources = []
    for name, source in wanted.items():
        if source.corpus not in opened:
            opened[source.corpus] = Corpus.open(Path(str(source.corpus)))
        own = opened[source.corpus]
        if own.vocabulary != corpus.vocabulary:
            raise BadInput(f"source {name}: {own.folder} has another vocabulary than the run's corpus {corpus.folder}")
        layout = _layout(name, source.layout, source.options, own.vocabulary)
        documents = Documents(own, split, damage, spoken=layout.spoken)
        if not len(documents):
            kind = "documents with speech" if layout.spoken else "documents"
            raise BadInput(f"source {name}: {own.folder} has no {kind} in its {split} split")
        share = source.weight / total
        sources.append(Source(name, share, layout, documents, own.content_hash, own.vocabulary, seed=config.train.seed))
    check_same_columns({source.name: source.layout for source in sources}, corpus.vocabulary)
    return sources


def neediest(sources: list[Source], tokens: Mapping[str, int]) -> Source:
    """The source whose share of the tokens handed out so far is furthest below its weight (the first such by name).

    Choosing it every time keeps each source within one document of its share.
    """
    total = 1 + sum(tokens[source.name] for source in sources)
    return max(sources, key=lambda source: source.weight * total - tokens[source.name])


def _layout(source: str, name: str, options: Mapping[str, Any], vocabulary: Vocabulary) -> Layout:
    try:
        layout = find_layout(name, options)
        layout.check(vocabulary)
    except BadInput as error:
        raise BadInput(f"source {source}: {error}") from None
    return layout
