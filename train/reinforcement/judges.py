"""Weights of the models beside a policy: reward model and critic from one checkpoint, the reference from where the
stage begins."""

from __future__ import annotations

import json
from pathlib import Path

from checkpoints import store
from checkpoints.manifest import MANIFEST_FILE, read_manifest
from configs.schema import Config
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput
from train import weights
from train.engines.actor_critic import ActorCritic
from train.engines.protocol import Engine


def take(config: Config, engine: ActorCritic, vocabulary: Vocabulary) -> None:
    """Load them, on all ranks. A critic that has learnt comes out of the run's own checkpoint afterwards.

    Raises BadInput where `ppo.reward` is no reward model of this backbone and `vocabulary`.
    """
    reward = reward_checkpoint(config)
    recorded = read_manifest(reward).vocabulary
    if recorded is not None and recorded != json.loads(json.dumps(vocabulary.describe())):
        raise BadInput(f"ppo.reward={config.ppo.reward}: {reward} was made with another vocabulary than the corpus's")
    _load(engine.reward, reward)
    _load(engine.critic, reward)
    first = weights.source(config)
    if first is not None:
        _load(engine.reference, first)


def reward_checkpoint(config: Config) -> Path:
    """The native checkpoint that `ppo.reward` names: the newest of a run, or a folder. Raises BadInput where there is
    none."""
    named = Path(str(config.ppo.reward))
    found = store.complete_checkpoints(named / "checkpoints")
    if found:
        return found[-1]
    if (named / MANIFEST_FILE).is_file():
        return named
    raise BadInput(f"ppo.reward={named}: no checkpoint in {named / 'checkpoints'}, and {named} is no native checkpoint")


def _load(engine: Engine, checkpoint: Path) -> None:
    engine.load_state(store.load(checkpoint, engine.sharded_state(optimizer=False, loading=True)), optimizer=False)
