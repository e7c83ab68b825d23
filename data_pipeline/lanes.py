"""Lanes: a fixed number of independent streams of packs, whatever the number of machines that read them."""

from __future__ import annotations

from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from configs.schema import Config
from data_pipeline.batch import Pack, Sample
from data_pipeline.damage import NO_DAMAGE, Damage
from data_pipeline.mixture import Mixture, Source, Taken
from data_pipeline.packing import best_fit, fill_packs
from runtime.exits import BadInput

MOST_EMPTY = 10_000  # documents in a row without a sample, after which no more is hoped for
MOST_ENDS = 16  # places tried for the end of a window
GOLDEN = (5**0.5 - 1) / 2

Place = dict[str, Taken]  # how far a lane has come in every source


class _Read(NamedTuple):
    """What one document became, how far the lane had come with it, and the damage met from the document before it on.
    Without samples it is the end of all sources."""

    samples: list[Sample]
    after: Place
    damage: Damage


class Lane:
    """Lane `number` of `lanes`. Of every source it reads the documents that `Order` deals it.

    It reads documents of the neediest source until they fill `window` packs of `length` tokens, ends the window after
    that document of the second half which leaves the least padding, fills packs and hands them out; the documents
    after it go to the next window. Lanes begin with different sources, and no lane hands out the packs of a window by
    length: else all would hand out long documents of the heaviest source first. A lane's whole state is how far it had
    come in every source when the present window began, how many packs it had handed out by then, and how many since.

    Attention costs a pack the sum of its samples' squared lengths. Each pack of a global batch of `batch` has a place
    in the range of costs, p / batch for the p-th, shifted by the golden ratio each step; a lane gives the packs of a
    window to its next turns so that costs and places are in the same order. So every step has dear and cheap packs
    alike, and those of one rank, every world-th, are spread over the range, whatever the number of ranks.
    """

    def __init__(self, number: int, lanes: int, mixture: Mixture, *, length: int, window: int, batch: int) -> None:
        self.number = number
        self._lanes = lanes
        self._mixture = mixture
        self._length = length
        self._goal = window * length
        self._batch = batch
        sources = mixture.sources
        self._first = sources[np.random.default_rng(number).choice(len(sources), p=mixture.shares)]
        self._damage = sources[0].documents.damage  # where those of all sources count
        self._padding_id = sources[0].vocabulary.special(sources[0].vocabulary.end_of_text)
        start = {source.name: source.begin(number, lanes) for source in sources}
        self.restore({"sources": start, "turn": 0, "packs": 0})

    @classmethod
    def of(cls, config: Config, mixture: Mixture, number: int) -> Lane:
        """Lane `number` as the loader of `config` reads it."""
        length, window = config.train.sequence_length, config.loader.packing_window
        return cls(number, config.loader.lanes, mixture, length=length, window=window, batch=config.train.global_batch)

    def state(self) -> dict[str, Any]:
        """{"sources": {source: [epoch, place, tokens]}, "turn": n, "packs": n}, JSON-ready."""
        sources = {name: list(taken) for name, taken in self._begin.items()}
        return {"sources": sources, "turn": self._turn, "packs": self._handed_out}

    def restore(self, state: dict[str, Any]) -> None:
        """Go to `state`; the window it stands in is read again when the next pack is asked for."""
        self._begin: Place = {name: Taken(*taken) for name, taken in state["sources"].items()}
        self._end = self._begin
        self._turn = int(state["turn"])
        self._handed_out = int(state["packs"])
        self._packs: list[Pack] = []
        self._ahead: list[_Read] = []  # documents after `_begin`, before any window has them
        self._damage.take()
        self._found = NO_DAMAGE

    def next_pack(self) -> Pack | None:
        """The next pack; None, for ever, once every source has ended and all was handed out."""
        if not self._packs:
            self._packs, self._end, found = self._next_window()
            if not self._handed_out:  # else the window is read again, and was told of with its first pack
                self._found = self._found.plus(found)
            if not self._packs:
                self._begin = self._end
                return None
        pack = self._packs[self._handed_out]
        self._handed_out += 1
        if self._handed_out == len(self._packs):
            self._begin, self._turn = self._end, self._turn + self._handed_out
            self._packs, self._handed_out = [], 0
        return pack

    def take_damage(self) -> Damage:
        """Damage met in the windows begun since the last call, each document's once, wherever lanes are resumed."""
        found, self._found = self._found, NO_DAMAGE
        return found

    def _next_window(self) -> tuple[list[Pack], Place, Damage]:
        ahead = self._ahead
        sizes = [[len(sample) for sample in read.samples] for read in ahead]
        filled = list(accumulate(map(sum, sizes)))  # tokens up to the end of each document
        while not filled or filled[-1] < self._goal:
            read = self._read(ahead[-1].after if ahead else self._begin)
            ahead.append(read)
            sizes.append([len(sample) for sample in read.samples])
            filled.append(sum(sizes[-1]) + (filled[-1] if filled else 0))
            if not read.samples:
                break
        end = self._fullest(sizes, filled) if filled[-1] >= self._goal else len(ahead)
        window, self._ahead = ahead[:end], ahead[end:]
        samples = [sample for read in window for sample in read.samples]
        packs = self._balanced(fill_packs(samples, self._length, self._padding_id)) if samples else []
        found = NO_DAMAGE
        for read in window:
            found = found.plus(read.damage)
        return packs, window[-1].after, found

    def _fullest(self, sizes: list[list[int]], filled: list[int]) -> int:
        """How many documents fill their packs best, of those that reach the second half of the goal."""
        ends = [end for end, tokens in enumerate(filled, 1) if 2 * tokens >= self._goal]
        ends = ends[:: -(-len(ends) // MOST_ENDS)]

        def at_best(end: int) -> float:
            return filled[end - 1] / -(-filled[end - 1] // self._length)

        def fullness(end: int) -> float:
            bins = best_fit([size for document in sizes[:end] for size in document], self._length)
            return filled[end - 1] / len(bins)

        best, fullest = ends[0], 0.0  # the first of the fullest; those are packed first that could be
        for end in sorted(ends, key=at_best, reverse=True):
            if at_best(end) < fullest:
                break
            if (full := fullness(end)) > fullest or (full == fullest and end < best):
                best, fullest = end, full
        return best

    def _balanced(self, packs: list[Pack]) -> list[Pack]:
        """`packs` in the order in which they are handed out from turn `_turn` on."""
        costs = np.array([sum(length * length for length in pack.attended) for pack in packs])
        step, place = np.divmod(self.number + self._lanes * (self._turn + np.arange(len(packs))), self._batch)
        wanted = (place / self._batch + step * GOLDEN) % 1.0
        order = np.empty(len(packs), np.int64)
        order[np.argsort(wanted, kind="stable")] = np.argsort(costs, kind="stable")
        return [packs[turn] for turn in order]

    def _read(self, place: Place) -> _Read:
        """The next document after `place` that gives any samples; those that give none are passed over."""
        passed: dict[str, int] = {}
        found = NO_DAMAGE
        while (source := self._next_source(place)) is not None:
            samples, taken = source.read(place[source.name], self.number, self._lanes, self._length)
            found = found.plus(self._damage.take().by(source.name))
            place = place | {source.name: taken}
            if samples:
                return _Read(samples, place, found)
            passed[source.name] = passed.get(source.name, 0) + 1
            if passed[source.name] >= max(MOST_EMPTY, len(source.documents) if source.documents.filter else 0):
                self._found = self._found.plus(found)
                raise BadInput(_nothing_for(source, passed[source.name], found, self._length))
        return _Read([], place, found)

    def _next_source(self, place: Place) -> Source | None:
        begun = any(taken.tokens for taken in place.values())
        if not begun and not self._first.ended(place[self._first.name]):
            return self._first
        return self._mixture.neediest(place)


def _nothing_for(source: Source, documents: int, found: Damage, length: int) -> str:
    """The line that says of a source why reading on is of no use."""
    too_long = found.kinds.get("too_long", 0)
    if too_long:
        why = f"{too_long} samples are longer than train.sequence_length {length}"
    else:
        why = "its corpus has nothing for it"
        if source.documents.filter:
            why += f" that its filter {source.documents.filter!r} keeps"
    return f"source {source.name}: layout {source.layout.name} made no sample of {documents} documents in a row; {why}"
