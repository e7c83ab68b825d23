"""Packs of the policy's own answers, round by round, in the place of a loader's.

`<run>/rollouts` has a file for every round, written when it is made: a run that was killed within a round goes on with
the answers of the policy that the round began with, and a run that ends can be looked at.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist

from checkpoints.agreement import gather, on_first_rank, together
from checkpoints.atomic import write_file
from configs.schema import Config
from data_pipeline.batch import Pack, Sample
from data_pipeline.corpus import Corpus
from data_pipeline.order import Cursor
from data_pipeline.permutation import seed_of, shuffled
from runtime.exits import BadInput
from train.engines.actor_critic import ActorCritic
from train.reinforcement.making import Maker, shared_packs
from train.reinforcement.prompts import Prompt, Prompts
from train.reinforcement.rollout import Rollout, figures_of, learnable

FOLDER = "rollouts"
_DOING = "cannot keep a round's answers"
_CURSOR = "0"  # as if the questions were a loader's one lane


class _Round(NamedTuple):
    number: int
    samples: list[Sample]
    figures: dict[str, float]
    after: Cursor  # where the next round's questions begin


class Rollouts:
    """A `data_pipeline.loader.StepPacks`. Every rank calls its methods in the same places: making a round is work that
    all of them share, and `between` its parts they call that."""

    def __init__(self, config: Config, corpus: Corpus, engine: ActorCritic, between: Callable[[], None]) -> None:
        self._config = config
        self._engine = engine
        self._vocabulary = corpus.vocabulary
        self._folder = Path(config.run.folder) / FOLDER
        self._prompts = Prompts(config, corpus, "train", config.ppo.prompts)
        held_out = config.train.validation_packs if config.train.validate_every else 0
        self._held_out = Prompts(config, corpus, "valid", held_out) if held_out else None
        self._maker = Maker(config, engine, corpus.vocabulary, between)
        self._parts = config.ppo.prompts // config.train.global_batch  # steps of one pass over a round
        self._steps = self._parts * config.ppo.epochs
        self._stream = {
            "seed": config.train.seed,
            "sequence_length": config.train.sequence_length,
            "global_batch": config.train.global_batch,
            "ppo": {name: getattr(config.ppo, name) for name in ("prompts", "epochs", "longest")},
            "source": self._prompts.source.describe(),
        }
        self.bounded = self._prompts.bounded
        self.sources: tuple[str, ...] = ()
        self._round: _Round | None = None
        self._go_to(0, self._prompts.first())

    @property
    def damaged(self) -> dict[str, int]:
        return dict(self._prompts.source.documents.damage.kinds)

    @property
    def damaged_from(self) -> dict[str, int]:
        return dict(self._prompts.source.documents.damage.sources)

    @property
    def ready(self) -> int:
        """Nothing is made ahead: the policy that is to answer is not there yet."""
        return 0

    @property
    def position(self) -> int:
        return self._step

    @property
    def figures(self) -> Mapping[str, float]:
        """Of the round that the last step was of; see `figures_of`."""
        return self._round.figures if self._round else {}

    def has_next(self) -> bool:
        """Whether there is a next step: one of a round that has begun, or of a whole one."""
        return self._step % self._steps > 0 or self._prompts.suffice(self._cursor)

    def next_step(self) -> list[Pack]:
        """This rank's share of the step's answers, in packs."""
        number, step = divmod(self._step, self._steps)
        if self._round is None or self._round.number != number:
            self._round = self._begun(number, step)
        turn, part = divmod(step, self._parts)
        samples = self._round.samples
        order = shuffled(len(samples), seed_of(self._config.train.seed, "round", number, turn))
        size = self._config.train.global_batch
        chosen = [samples[place] for place in order[part * size : (part + 1) * size].tolist()]
        self._step += 1
        if self._step % self._steps == 0:
            self._cursor = self._round.after
        return shared_packs(self._config, self._vocabulary, self._engine, chosen)

    def measured(self) -> dict[str, float]:
        """The figures of answers to the questions that are held out, drawn by the same numbers each time."""
        assert self._held_out is not None, "checked: train.validate_every has train.validation_packs"
        prompts = self._taken(self._held_out, self._held_out.first())[0]
        return figures_of(self._maker.make("valid", self._step, prompts), self._config.ppo)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step, "lanes": {_CURSOR: list(self._cursor)}, "stream": self._stream}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in json.loads(json.dumps(self._stream)).items():
            if state["stream"].get(name) != value:
                raise BadInput(f"this run's rounds were made with another {name}; put it back, or start a new run")
        self._go_to(int(state["step"]), Cursor(*state["lanes"][_CURSOR]))

    def close(self) -> None:
        """Nothing is under way between steps; the last export of the policy is of no more use."""
        if dist.get_rank() == 0:
            self._maker.clear()

    def _go_to(self, step: int, cursor: Cursor) -> None:
        self._step, self._cursor, self._round = step, cursor, None

    # --- rounds -----------------------------------------------------------------------------------------------------

    def _begun(self, number: int, step: int) -> _Round:
        """Round `number`, of which `step` steps were handed out: made now, or as it was made before."""
        looked = together(lambda: self._kept(number, begun=step > 0) if dist.get_rank() == 0 else None, _DOING)
        kept = gather(looked)[0]
        if kept is None:
            if step:
                raise BadInput(
                    f"{self._file(number)} is gone, and the weights that gave its answers with it; begin the run again"
                )
            kept = self._made(number)
        rollouts = [_rollout(fields) for fields in kept["rollouts"]]
        figures = figures_of(rollouts, self._config.ppo)
        samples = learnable(rollouts, self._vocabulary, self._config.ppo)
        return _Round(number, samples, {"ppo/round": number, **figures}, Cursor(*kept["after"]))

    def _made(self, number: int) -> dict[str, Any]:
        prompts, after = self._taken(self._prompts, self._cursor)
        rollouts = self._maker.make(str(number), self._step, prompts)
        content = {"step": self._step, "after": list(after), "rollouts": [asdict(rollout) for rollout in rollouts]}
        on_first_rank(partial(self._keep, number, content), _DOING)
        return content

    @staticmethod
    def _taken(prompts: Prompts, cursor: Cursor) -> tuple[list[Prompt], Cursor]:
        """What rank 0 reads, on all of them."""
        taken = together(lambda: prompts.take(cursor) if dist.get_rank() == 0 else None, "cannot ask")
        found = gather(taken)[0]
        assert found is not None, "of rank 0"
        return found

    def _keep(self, number: int, content: dict[str, Any]) -> None:
        self._folder.mkdir(exist_ok=True)
        write_file(self._file(number), json.dumps(content))

    def _kept(self, number: int, *, begun: bool) -> dict[str, Any] | None:
        """What is kept of a round that has `begun`; None where that is nothing. For one rank, which removes what is of
        this round's first step or later: it was said by a policy of a past that is no more."""
        for file in self._folder.glob("*.json"):
            if int(file.stem) > number or (int(file.stem) == number and not begun):
                file.unlink()
        file = self._file(number)
        return json.loads(file.read_text(encoding="utf-8")) if begun and file.is_file() else None

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:06d}.json"


def _rollout(fields: Mapping[str, Any]) -> Rollout:
    """Of what `asdict` made, read from JSON or not."""
    known: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    return Rollout(**known)
