"""Lanes: a fixed number of independent streams of packs, whatever the number of machines that read them."""

from __future__ import annotations

from copy import deepcopy
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.batch import Pack, Sample
from data_pipeline.mixture import Source, neediest
from data_pipeline.packing import best_fit, fill_packs
from runtime.exits import BadInput

MOST_EMPTY = 10_000  # documents in a row without a sample, after which no more is hoped for
MOST_ENDS = 16  # places tried for the end of a window


class _Place(NamedTuple):
    """How far a lane has come in every source: documents read, and tokens taken."""

    documents: dict[str, int]
    tokens: dict[str, int]


class _Read(NamedTuple):
    """What one document became, and how far the lane had come with it."""

    samples: list[Sample]
    after: _Place


class Lane:
    """Lane `number` of `lanes`. Of every source it reads each `lanes`-th document, from its `number`-th on.

    It reads documents of the neediest source until they fill `window` packs of `length` tokens, ends the window after
    that document of the second half which leaves the least padding, fills packs and hands them out; the documents
    after it go to the next window. Packs of a window come in a seeded order, and lanes begin with different sources:
    else all would hand out long documents of the heaviest source first. A lane's whole state is how far it had come
    in every source when the present window began, and how many packs of the window it has handed out.
    """

    def __init__(self, number: int, lanes: int, sources: list[Source], *, length: int, window: int) -> None:
        self._number = number
        self._lanes = lanes
        self._sources = sources
        self._length = length
        self._goal = window * length
        weights = np.array([source.weight for source in sources])
        self._first = sources[np.random.default_rng(number).choice(len(sources), p=weights / weights.sum())]
        self._padding_id = sources[0].vocabulary.special(sources[0].vocabulary.end_of_text)
        zeros = {source.name: 0 for source in sources}
        self.restore({"documents": zeros, "tokens": zeros, "packs": 0})

    def state(self) -> dict[str, Any]:
        """{"documents": {source: n}, "tokens": {source: n}, "packs": n}."""
        return {**deepcopy(self._begin._asdict()), "packs": self._handed_out}

    def restore(self, state: dict[str, Any]) -> None:
        """Go to `state`; the window it stands in is read again when the next pack is asked for."""
        self._begin = _Place(dict(state["documents"]), dict(state["tokens"]))
        self._end = self._begin
        self._handed_out = int(state["packs"])
        self._packs: list[Pack] = []
        self._ahead: list[_Read] = []  # documents after `_begin`, before any window has them

    def next_pack(self) -> Pack:
        if not self._packs:
            self._packs, self._end = self._next_window()
        pack = self._packs[self._handed_out]
        self._handed_out += 1
        if self._handed_out == len(self._packs):
            self._begin, self._packs, self._handed_out = self._end, [], 0
        return pack

    def _next_window(self) -> tuple[list[Pack], _Place]:
        ahead = self._ahead
        sizes = [[len(sample) for sample in read.samples] for read in ahead]
        filled = list(accumulate(map(sum, sizes)))  # tokens up to the end of each document
        while not filled or filled[-1] < self._goal:
            ahead.append(self._read(ahead[-1].after if ahead else self._begin))
            sizes.append([len(sample) for sample in ahead[-1].samples])
            filled.append(sum(sizes[-1]) + (filled[-1] if filled else 0))
        ends = [end for end, tokens in enumerate(filled, 1) if 2 * tokens >= self._goal]
        ends = ends[:: -(-len(ends) // MOST_ENDS)]

        def fullness(end: int) -> float:
            bins = best_fit([size for document in sizes[:end] for size in document], self._length)
            return filled[end - 1] / (len(bins) * self._length)

        end = max(ends, key=fullness)
        window, self._ahead = ahead[:end], ahead[end:]
        samples = [sample for read in window for sample in read.samples]
        packs = fill_packs(samples, self._length, self._padding_id)
        order = np.random.default_rng([self._number, *self._begin.documents.values()]).permutation(len(packs))
        return [packs[turn] for turn in order], window[-1].after

    def _read(self, place: _Place) -> _Read:
        """The next document after `place` that gives any samples; those that give none are passed over."""
        source = neediest(self._sources, place.tokens) if any(place.tokens.values()) else self._first
        turn = place.documents[source.name]
        for passed in range(MOST_EMPTY):
            if samples := source.samples((turn + passed) * self._lanes + self._number, self._length):
                tokens = place.tokens[source.name] + sum(len(sample) for sample in samples)
                after = _Place(place.documents | {source.name: turn + passed + 1}, place.tokens | {source.name: tokens})
                return _Read(samples, after)
        raise BadInput(
            f"source {source.name}: layout {source.layout.name} made no sample of {MOST_EMPTY} documents in a row; "
            f"its corpus has nothing for it"
        )
