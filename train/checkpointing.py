"""The checkpoints of a run: when one is due, what goes into it, and going on from the newest usable one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist

from checkpoints import store
from configs.compose import to_yaml
from configs.schema import Config
from data_pipeline.loader import Loader, merge_states
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput
from train.engines.protocol import Engine
from train.journal import Journal
from train.progress import Progress

CONFIG_FILE = "config.yaml"


class Checkpoints:
    """The checkpoints of one run, of which every rank holds one and calls the same methods in the same order."""

    def __init__(
        self, config: Config, engine: Engine, loader: Loader, vocabulary: Vocabulary, say: Callable[[str], None]
    ) -> None:
        """`say` prints a line where it is called on rank 0."""
        self.folder = Path(config.run.folder) / "checkpoints"
        self._config = config
        self._engine = engine
        self._loader = loader
        self._vocabulary = vocabulary
        self._say = say

    # --- saving ---------------------------------------------------------------------------------------------

    def is_due(self, step: int) -> bool:
        """Whether the state after `step` is to be saved."""
        every = self._config.checkpoint.every
        return step == self._config.train.steps or (every > 0 and step % every == 0)

    def save(self, progress: Progress, journal: Journal | None) -> None:
        """Save the state as it is now. `journal`, where this rank keeps one, is put on disk before."""
        states: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(states, self._loader.state_dict())
        if journal:
            journal.sync()
        store.save(
            self.folder,
            progress.step,
            self._engine.sharded_state(optimizer=True, loading=False),
            state={"progress": progress.state(), "loader": merge_states(states)},
            topology={**asdict(self._config.parallel), "data": self._engine.data_size},
            vocabulary=self._vocabulary.describe(),
            texts={**self._vocabulary.files(), CONFIG_FILE: to_yaml(self._config)},
        )
        if dist.get_rank() == 0:
            store.prune(self.folder, self._config.checkpoint.keep)

    # --- going on -------------------------------------------------------------------------------------------

    def resume(self) -> Progress | None:
        """Take parameters, optimiser and loader state from the newest usable checkpoint; None where there is none."""
        checkpoint = self._newest_usable()
        if checkpoint is None:
            return None
        kept = store.read_state(checkpoint)
        progress = Progress(**kept["progress"])
        # Before its first step an optimiser has no state, and Megatron-Core fails to load one of step 0.
        self.load(checkpoint, optimizer=progress.step > 0)
        self._loader.load_state_dict(kept["loader"])
        self._say(f"resuming from {checkpoint} at step {progress.step}")
        return progress

    def load_newest(self) -> Path:
        """Parameters of the newest usable checkpoint, to look at them. Raises BadInput where there is none."""
        checkpoint = self._newest_usable()
        if checkpoint is None:
            raise BadInput(f"{self.folder} holds no usable checkpoint")
        self.load(checkpoint, optimizer=False)
        return checkpoint

    def load(self, checkpoint: Path, *, optimizer: bool) -> None:
        """Take the parameters of any native checkpoint, and with `optimizer` the optimiser's state."""
        state = store.load(checkpoint, self._engine.sharded_state(optimizer=optimizer, loading=True))
        self._engine.load_state(state, optimizer=optimizer)

    def _newest_usable(self) -> Path | None:
        """Rank 0 verifies and all follow: reading every byte on every rank would flood the file system."""
        found = [store.newest_usable(self.folder, log=self._say) if dist.get_rank() == 0 else None]
        dist.broadcast_object_list(found)
        return found[0]
