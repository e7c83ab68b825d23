"""What a layout makes of a document, token by token with its name and its weight in the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np

from data_pipeline.batch import Sample
from data_pipeline.layouts import Layout
from data_pipeline.sample_bytes import DamagedSample
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import TEXT, Vocabulary
from runtime.exits import BadInput

SLOT = "slot"  # kind of a place that features fill
SPECIAL = "special"
NOTHING = "–"  # a column that is not real in its row


class Token(NamedTuple):
    """One place of a sample. kind: text, special, slot or a codebook's name (of the first real column). weight: the
    mean over its real columns; None of the first place, which nothing stands before."""

    name: str
    kind: str
    weight: float | None


class Run(NamedTuple):
    """Neighbouring tokens of one weight."""

    weight: float | None
    tokens: list[Token]


@dataclass(frozen=True)
class Laid:
    """A sample of a layout. `weighted`: places with loss; `total`: sum of the weights."""

    key: str
    tokens: list[Token]
    counts: dict[str, int]
    weighted: int
    total: float

    @property
    def runs(self) -> list[Run]:
        return [Run(weight, list(run)) for weight, run in groupby(self.tokens, key=lambda token: token.weight)]


def lay(layout: Layout, utterances: Sequence[Utterance], vocabulary: Vocabulary, seed: int = 0) -> list[Laid]:
    """The samples of one document. `seed` is of what a layout draws; training draws anew in every epoch. Raises
    BadInput for a document that the layout finds damaged."""
    try:
        samples = layout(utterances, vocabulary, np.random.default_rng(seed))
    except DamagedSample as damaged:
        raise BadInput(f"layout {layout.name} takes no such document: {damaged}") from damaged
    short = short_names(vocabulary)
    return [_named(sample, vocabulary, short) for sample in samples]


def short_names(vocabulary: Vocabulary) -> dict[str, str]:
    """The shortest beginning of each codebook's name that no other begins with."""
    names = [book.name for book in vocabulary.codebooks]
    short = {}
    for name in names:
        beginnings = (name[:length] for length in range(1, len(name)))
        others = [other for other in names if other != name]
        short[name] = next((begin for begin in beginnings if not any(o.startswith(begin) for o in others)), name)
    return short


def _named(sample: Sample, vocabulary: Vocabulary, short: dict[str, str]) -> Laid:
    ids = sample.tokens.reshape(len(sample), -1)
    weights = sample.loss_weight.reshape(len(sample), -1)
    slots = {run.start + place: run.encoder for run in sample.slots for place in range(run.places)}
    tokens = []
    for place, (row, weight) in enumerate(zip(ids.tolist(), weights, strict=True)):
        real = np.array(row) >= 0
        if place in slots:
            name, kind = f"[{slots[place]}]", SLOT
        else:
            named = [_name(index, vocabulary, short) if index >= 0 else (NOTHING, "") for index in row]
            name = " ".join(text for text, _ in named)
            kind = next((kind for _, kind in named if kind), SLOT)
        mean = float(weight[real].mean()) if real.any() else 0.0
        tokens.append(Token(name, kind, mean if place else None))
    counts: dict[str, int] = {}
    for token in tokens:
        counts[token.kind] = counts.get(token.kind, 0) + 1
    covered = [token.weight for token in tokens if token.weight]
    return Laid(sample.key, tokens, counts, len(covered), float(sum(covered)))


def _name(index: int, vocabulary: Vocabulary, short: dict[str, str]) -> tuple[str, str]:
    """A token's name to read, and its kind."""
    for kind, ids in vocabulary.ranges.items():
        if index in ids:
            if kind in short:
                row, code = divmod(index - ids.start, next(b.size for b in vocabulary.codebooks if b.name == kind))
                rows = next(book.rows for book in vocabulary.codebooks if book.name == kind)
                return f"{short[kind]}{f'{row}:' if rows > 1 else ''}{code}", kind
            name = vocabulary.token_name(index)
            if kind == TEXT and not (name.startswith("<|") and name.endswith("|>")):
                text = vocabulary.decode_text([index])
                return (name if "\ufffd" in text or not text else text), TEXT  # part of a letter has no text
            return name, SPECIAL
    return f"?{index}", SPECIAL
