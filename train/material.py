"""What a stage learns from, and what it is measured by: a corpus's packs, or answers that its own policy gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import cast

from configs.checks.ppo import PPO
from configs.schema import Config
from data_pipeline.batch import Pack
from data_pipeline.corpus import Corpus
from data_pipeline.loader import StepPacks, control_packs, make_loader, validation_packs
from train.engines.actor_critic import ActorCritic
from train.engines.protocol import Engine
from train.reinforcement import judges
from train.reinforcement.rollouts import Rollouts


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Material:
    """Of one rank; all ranks call the same in the same places.

    loader: packs of every step. validation, control: packs whose losses are measured, and the same with another one's
    sound. measured: figures that stand for such losses, where no packs tell how good a model is; None: losses do.
    prepare: loads the weights of models beside the one that learns, before its own are.
    """

    loader: StepPacks
    validation: list[Pack] = field(default_factory=list)
    control: list[Pack] = field(default_factory=list)
    measured: Callable[[], dict[str, float]] | None = None
    prepare: Callable[[], None] = _nothing


def material_of(config: Config, corpus: Corpus, engine: Engine, between: Callable[[], None]) -> Material:
    """Of the stage; `engine` is what `build_engine` made of the same config. `between` is called between two parts of
    making answers, which is long."""
    if config.stage.objective == PPO:
        models = cast(ActorCritic, engine)
        rollouts = Rollouts(config, corpus, models, between)
        return Material(
            rollouts, measured=rollouts.measured, prepare=partial(judges.take, config, models, corpus.vocabulary)
        )
    ranks = {"rank": engine.data_rank, "world": engine.data_size}
    return Material(
        make_loader(config, corpus, split="train", **ranks),
        validation_packs(config, corpus, **ranks),
        control_packs(config, corpus, **ranks),
    )
