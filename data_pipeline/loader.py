"""The loader: packs of every step for one data-parallel rank, in an order that no number of ranks changes.

Global pack g = step x global batch + p comes from lane g mod lanes, and rank r serves the packs with p mod world = r.
Where world divides both lanes and global batch, these are whole lanes: those with lane mod world = r.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from configs.schema import Config
from data_pipeline.batch import Pack
from data_pipeline.corpus import Corpus
from data_pipeline.damage import DamageTally
from data_pipeline.feed import Feed, LocalFeed
from data_pipeline.feed_workers import WorkerFeed
from data_pipeline.hearing import with_others_sound
from data_pipeline.lanes import Lane
from data_pipeline.mixture import Mixture, open_mixture
from data_pipeline.packing import filler
from runtime.exits import BadInput


class _Step(NamedTuple):
    packs: list[Pack]
    states: dict[int, dict[str, Any]]  # of this rank's lanes, after these packs
    real: bool  # whether any pack holds samples


class StepPacks(Protocol):
    """What a training loop asks for this rank's packs of every step; `Loader` says what each of these is."""

    bounded: bool
    sources: tuple[str, ...]

    @property
    def damaged(self) -> dict[str, int]: ...

    @property
    def damaged_from(self) -> dict[str, int]: ...

    @property
    def ready(self) -> int: ...

    @property
    def position(self) -> int: ...

    @property
    def figures(self) -> Mapping[str, float]:
        """What was measured of the packs that were handed out last, by the names that a step's record has for it."""

    def has_next(self) -> bool: ...

    def next_step(self) -> list[Pack]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class Loader:
    """This rank's packs, step by step, as `feed` reads them: the lanes with number mod `world` = `rank`, in turn.

    `begin` are the states that these lanes begin with. `bounded`: whether the data ends at some step (see `has_next`).
    All errors of reading come out of `next_step` and `has_next`.
    """

    def __init__(
        self,
        config: Config,
        mixture: Mixture,
        feed: Feed,
        begin: dict[int, dict[str, Any]],
        *,
        rank: int,
        world: int,
    ) -> None:
        self._stream = {
            "seed": config.train.seed,
            "sequence_length": config.train.sequence_length,
            "global_batch": config.train.global_batch,
            "lanes": config.loader.lanes,
            "packing_window": config.loader.packing_window,
            "shuffle_documents": config.loader.shuffle_documents,
            "mixture": mixture.describe(),
        }
        self.bounded = mixture.bounded
        self.sources = tuple(source.name for source in mixture.sources)
        self._feed = feed
        self._packs_a_step = config.train.global_batch // world
        first = mixture.sources[0]  # all make the same columns
        end_of_text = first.vocabulary.special(first.vocabulary.end_of_text)
        self._filler = filler(config.train.sequence_length, end_of_text, first.layout.columns(first.vocabulary))
        self._damage = DamageTally(config.loader.damaged_share)
        self._next: _Step | None = None  # read, and not handed out
        self._refusal: str | None = None  # what reading ended in
        self._go_to(0, begin)

    @property
    def damaged(self) -> dict[str, int]:
        """Samples left out so far by kind of damage, in reading what was handed out."""
        return dict(self._damage.kinds)

    @property
    def damaged_from(self) -> dict[str, int]:
        """The same samples by source."""
        return dict(self._damage.sources)

    @property
    def ready(self) -> int:
        """Packs read ahead and waiting to be handed out."""
        return self._feed.ready

    @property
    def figures(self) -> Mapping[str, float]:
        """None of its own."""
        return {}

    @property
    def damaged_names(self) -> list[str]:
        """Where the first hundred damaged samples are, and what is wrong with them."""
        return list(self._damage.names)

    @property
    def position(self) -> int:
        """Steps handed out so far, since the beginning of the data."""
        return self._step

    def has_next(self) -> bool:
        """Whether the next step has any sample for this rank. Sources that are read `epochs` times end at some step;
        where no rank has a sample any more, training has to."""
        return self._peek().real

    def next_step(self) -> list[Pack]:
        """This rank's packs of the next step: global_batch / world of them, in global order. Lanes that have ended
        give padding."""
        step = self._peek()
        self._next = None
        self._step += 1
        self._states = step.states
        return step.packs

    def state_dict(self) -> dict[str, Any]:
        """{"step": steps handed out, "lanes": {number: ints of the lane}, "stream": what decides the order}; JSON.

        Holds the lanes that this rank serves; `merge_states` puts those of all ranks together.
        """
        lanes = {str(number): state for number, state in self._states.items()}
        return {"step": self._step, "lanes": lanes, "stream": self._stream}

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
        for number in self._states:
            if str(number) not in state["lanes"]:
                raise BadInput(f"the state of the data has no lane {number}: it is not the state of all ranks")
        self._go_to(int(state["step"]), {number: state["lanes"][str(number)] for number in self._states})

    def close(self) -> None:
        """Stop reading ahead. A later `next_step` goes on where the last one was."""
        self._feed.close()
        self._go_to(self._step, self._states)

    def _go_to(self, step: int, states: dict[int, dict[str, Any]]) -> None:
        self._step, self._states = step, states
        self._next, self._refusal = None, None
        self._feed.start(states, step * self._packs_a_step % len(states))

    def _peek(self) -> _Step:
        if self._refusal is not None:
            raise BadInput(self._refusal)
        if self._next is None:
            try:
                self._next = self._read_step()
            except BadInput as error:
                self._refusal = str(error)
                raise
        return self._next

    def _read_step(self) -> _Step:
        packs, states = [], dict(self._states)
        for _ in range(self._packs_a_step):
            served = self._feed.next()
            self._damage.merge(served.damage)
            if served.refusal is not None:
                raise BadInput(served.refusal)
            states[served.lane] = served.state
            packs.append(served.pack)
        return _Step([pack or self._filler for pack in packs], states, any(pack is not None for pack in packs))


def merge_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One state of all lanes from the states of all ranks at the same step; ranks may come twice.

    Raises ValueError where the ranks are not at the same step.
    """
    if len({state["step"] for state in states}) != 1:
        raise ValueError(f"loader states of different steps: {[state['step'] for state in states]}")
    lanes = {number: lane for state in states for number, lane in state["lanes"].items()}
    ordered = dict(sorted(lanes.items(), key=lambda item: int(item[0])))
    return {"step": states[0]["step"], "lanes": ordered, "stream": states[0]["stream"]}


def make_loader(config: Config, corpus: Corpus, *, split: str, rank: int, world: int) -> Loader:
    """The loader of `config.mixture` over one split of the open corpus, for one data-parallel rank of `world`.

    Raises BadInput for what the user can mend, and where `world` divides not both the lanes and the global batch.
    """
    options, batch = config.loader, config.train.global_batch
    for name, number in (("loader.lanes", options.lanes), ("train.global_batch", batch)):
        if number < 1 or number % world:
            raise BadInput(f"{name} {number} must be a multiple of the {world} data-parallel ranks")
    counted = DamageTally(allowed_share=1.0)  # counts go with the packs, and the loader judges them
    mixture = open_mixture(config, corpus, split, counted)
    lanes = [Lane.of(config, mixture, number) for number in range(rank, options.lanes, world)]
    begin = {lane.number: lane.state() for lane in lanes}
    ahead = options.prefetch * batch // world
    feed: Feed
    if options.workers:
        feed = WorkerFeed(config, corpus, split, list(begin), workers=options.workers, step=batch // world, ahead=ahead)
    else:
        feed = LocalFeed(lanes, ahead)
    return Loader(config, mixture, feed, begin, rank=rank, world=world)


def validation_packs(config: Config, corpus: Corpus, *, rank: int, world: int) -> list[Pack]:
    """This rank's part of the first `train.validation_packs` packs of the "valid" split, laid out as in training.

    They are the same for every world and number of lanes; pack p goes to rank p mod world. Empty where
    `train.validate_every` is 0. Raises BadInput where world does not divide their number.
    """
    if not config.train.validate_every:
        return []
    count = config.train.validation_packs
    if count < 1 or count % world:
        raise BadInput(f"train.validation_packs {count} must be a multiple of the {world} data-parallel ranks")
    mixture = open_mixture(config, corpus, "valid", DamageTally(allowed_share=1.0))
    damage = DamageTally(config.loader.damaged_share)
    window = min(count, config.loader.packing_window)
    lane = Lane(0, 1, mixture, length=config.train.sequence_length, window=window, batch=count)
    packs: list[Pack] = []
    while len(packs) < count and (pack := lane.next_pack()) is not None:  # never None: no source ends
        packs.append(pack)
        damage.merge(lane.take_damage())
    return packs[rank::world]


def control_packs(config: Config, corpus: Corpus, *, rank: int, world: int) -> list[Pack]:
    """The validation packs once more, each sample with the sound of another one of the whole split; empty where none is
    heard through an adapter, or no control is asked for."""
    if config.adapter is None or not config.adapter.control or not config.train.validate_every:
        return []
    packs = validation_packs(config, corpus, rank=0, world=1)
    return with_others_sound(packs)[rank::world] if any(pack.slots for pack in packs) else []
