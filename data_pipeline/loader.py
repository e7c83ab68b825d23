"""The loader: packs of every step for one data-parallel rank, in an order that no number of ranks changes.

Global pack g = step x global batch + p comes from lane g mod lanes, and rank r serves the packs with p mod world = r.
Where world divides both lanes and global batch, these are whole lanes: those with lane mod world = r.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from configs.schema import Config
from data_pipeline.batch import Pack
from data_pipeline.corpus import Corpus
from data_pipeline.damage import DamageTally
from data_pipeline.lanes import Lane
from data_pipeline.mixture import Source, open_sources
from data_pipeline.prefetch import Prefetcher
from runtime.exits import BadInput


class _Step(NamedTuple):
    packs: list[Pack]
    state: dict[str, Any]  # after these packs


class Loader:
    """This rank's packs, step by step, read ahead by `config.loader.prefetch` steps.

    Raises BadInput where `world` divides not both the lanes and the global batch. All errors of reading ahead come
    out of `next_step`.
    """

    def __init__(self, config: Config, sources: list[Source], damage: DamageTally, *, rank: int, world: int) -> None:
        lanes, batch = config.loader.lanes, config.train.global_batch
        for name, number in (("loader.lanes", lanes), ("train.global_batch", batch)):
            if number < 1 or number % world:
                raise BadInput(f"{name} {number} must be a multiple of the {world} data-parallel ranks")
        self._batch, self._rank, self._world = batch, rank, world
        length, window = config.train.sequence_length, config.loader.packing_window
        self._lanes = {
            number: Lane(number, lanes, sources, length=length, window=window) for number in range(rank, lanes, world)
        }
        self._total_lanes = lanes
        self._stream = {
            "seed": config.train.seed,
            "sequence_length": length,
            "global_batch": batch,
            "lanes": lanes,
            "packing_window": window,
            "sources": {source.name: source.describe() for source in sources},
        }
        self._damage = damage
        self._prefetch = config.loader.prefetch
        self._prefetcher: Prefetcher[_Step] | None = None
        self._steps_read = 0
        self._handed_out = self._state()

    @property
    def damaged(self) -> dict[str, int]:
        """Samples left out so far by kind of damage, those read ahead included."""
        return dict(self._damage.kinds)

    @property
    def damaged_names(self) -> list[str]:
        """Where the first hundred damaged samples are, and what is wrong with them."""
        return list(self._damage.names)

    def next_step(self) -> list[Pack]:
        """This rank's packs of the next step: global_batch / world of them, in global order."""
        if self._prefetch > 0 and self._prefetcher is None:
            self._prefetcher = Prefetcher(self._read_step, self._prefetch)
        step = self._prefetcher.next() if self._prefetcher else self._read_step()
        self._handed_out = step.state
        return step.packs

    def state_dict(self) -> dict[str, Any]:
        """{"step": steps handed out, "lanes": {number: ints of the lane}, "stream": what decides the order}; JSON.

        Holds the lanes that this rank serves; `merge_states` puts those of all ranks together.
        """
        return self._handed_out

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a merged state, of any number of ranks. Raises BadInput where it is of another stream of packs, or
        lacks a lane of this rank."""
        for name, value in self._stream.items():
            before = state["stream"].get(name)
            if before != value:
                raise BadInput(
                    f"the data of this run was ordered with {name} = {json.dumps(before)}, and now it is "
                    f"{json.dumps(value)}; put it back, or start a new run"
                )
        for number in self._lanes:
            if str(number) not in state["lanes"]:
                raise BadInput(f"the state of the data has no lane {number}: it is not the state of all ranks")
        self._stop_reading()
        self._go_to(state)

    def close(self) -> None:
        """Stop reading ahead. A later `next_step` goes on where the last one was."""
        self._stop_reading()
        self._go_to(self._handed_out)

    def _stop_reading(self) -> None:
        if self._prefetcher:
            self._prefetcher.close()
            self._prefetcher = None

    def _go_to(self, state: dict[str, Any]) -> None:
        for number, lane in self._lanes.items():
            lane.restore(state["lanes"][str(number)])
        self._steps_read = int(state["step"])
        self._handed_out = self._state()

    def _read_step(self) -> _Step:
        first = self._steps_read * self._batch
        packs = [
            self._lanes[(first + turn) % self._total_lanes].next_pack()
            for turn in range(self._rank, self._batch, self._world)
        ]
        self._steps_read += 1
        return _Step(packs, self._state())

    def _state(self) -> dict[str, Any]:
        lanes = {str(number): lane.state() for number, lane in self._lanes.items()}
        return {"step": self._steps_read, "lanes": lanes, "stream": self._stream}


def merge_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One state of all lanes from the states of all ranks at the same step; ranks may come twice.

    Raises ValueError where the ranks are not at the same step.
    """
    if len({state["step"] for state in states}) != 1:
        raise ValueError(f"loader states of different steps: {[state['step'] for state in states]}")
    lanes = {number: lane for state in states for number, lane in state["lanes"].items()}
    ordered = dict(sorted(lanes.items(), key=lambda item: int(item[0])))
    return {"step": states[0]["step"], "lanes": ordered, "stream": states[0]["stream"]}


def make_loader(config: Config, corpus_folder: Path, *, split: str, rank: int, world: int) -> Loader:
    """The loader of `config.mixture` over one split. Raises BadInput for what the user can mend."""
    damage = DamageTally(config.loader.damaged_share)
    sources = open_sources(config, Corpus.open(corpus_folder), split, damage)
    return Loader(config, sources, damage, rank=rank, world=world)


def validation_packs(config: Config, corpus_folder: Path, *, rank: int, world: int) -> list[Pack]:
    """This rank's part of the first `train.validation_packs` packs of the "valid" split, laid out as in training.

    They are the same for every world and number of lanes; pack p goes to rank p mod world. Empty where
    `train.validate_every` is 0. Raises BadInput where world does not divide their number.
    """
    if not config.train.validate_every:
        return []
    count = config.train.validation_packs
    if count < 1 or count % world:
        raise BadInput(f"train.validation_packs {count} must be a multiple of the {world} data-parallel ranks")
    sources = open_sources(config, Corpus.open(corpus_folder), "valid", DamageTally(config.loader.damaged_share))
    window = min(count, config.loader.packing_window)
    lane = Lane(0, 1, sources, length=config.train.sequence_length, window=window)
    packs = [lane.next_pack() for _ in range(count)]
    return packs[rank::world]
