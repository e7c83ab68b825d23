"""The checkpoints of a run: when one is due, what goes into it, and going on from the newest usable one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist

from checkpoints import lora, store
from checkpoints.agreement import gather
from checkpoints.atomic import remove
from checkpoints.layout import step_of
from checkpoints.manifest import MODEL_PREFIX, problems, read_manifest
from checkpoints.maps import describe
from checkpoints.retention import prune
from checkpoints.saving import Contents, Saver
from configs.audio_input import audio_input_of
from configs.compose import to_yaml
from configs.parameter_names import is_added
from configs.schema import Config, StageKind, Verification
from data_pipeline import codebooks
from data_pipeline.corpus import Corpus
from data_pipeline.loader import StepPacks, merge_states
from runtime.exits import BadInput
from runtime.run_files import CONFIG_FILE
from train.engines.deepspeed_folder import tag_of, tagged
from train.engines.protocol import Engine, OwnForm
from train.journal import Journal
from train.progress import Progress

OWN_FORM = "deepspeed"  # folder of a run: checkpoints as DeepSpeed writes them


def engine_of(config: Config) -> dict[str, Any]:
    """The engine that wrote a checkpoint, as its manifest tells: to know, not to load it by."""
    engine = config.engine
    return {"engine": engine.name, **({"zero_stage": engine.zero_stage} if engine.name == "deepspeed" else {})}


class Checkpoints:
    """The checkpoints of one run, of which every rank holds one and calls the same methods in the same order.

    With `checkpoint.asynchronous` a periodic save returns at once and copies the state beside the next step, whose
    update waits for the copy (`settle`); `poll` at every step finds out when it is on disk, and whatever needs it
    there waits: the next save, the last one, a stop, a rewind. A periodic save that fails, as on a full disk, is one
    line and the run goes on, `checkpoint.failures` times in a row; then, and where the state would be lost, BadInput
    is raised on all ranks.
    """

    def __init__(
        self,
        config: Config,
        engine: Engine,
        loader: StepPacks,
        corpus: Corpus,
        journal: Journal | None,
        say: Callable[[str], None],
    ) -> None:
        """`journal`, where this rank keeps one, is put on disk before a checkpoint appears. `say` prints a line where
        it is called on rank 0."""
        self.folder = Path(config.run.folder) / "checkpoints"
        self._own = Path(config.run.folder) / OWN_FORM
        self._config = config
        self._engine = engine
        self._loader = loader
        self._corpus = corpus
        self._say = say
        self._saver = Saver(self.folder, before_commit=journal.sync if journal else None, tidy=self._tidy)
        self._failures = 0  # periodic saves in a row
        self._saving: dict[str, Any] | None = None  # progress that the save under way holds
        self._saved: dict[str, Any] | None = None  # progress that the newest checkpoint is known to hold

    # --- saving ---------------------------------------------------------------------------------------------

    @property
    def under_way(self) -> bool:
        """Whether a save is being written beside training; the same on all ranks."""
        return self._saver.busy

    def prepare(self) -> None:
        """Take the host memory that saves in the background need: before the first step, where its lack is told early
        and nothing waits for it. At most one copy of what this rank saves."""
        if self._config.checkpoint.asynchronous and self._config.checkpoint.every:
            self._saver.prepare(self._engine.sharded_state(optimizer=True, loading=False))

    def is_due(self, step: int) -> bool:
        """Whether the state after `step` is to be saved."""
        every = self._config.checkpoint.every
        return step == self._config.train.steps or (every > 0 and step % every == 0)

    def save_if_due(self, progress: Progress) -> None:
        """The periodic save, if it is time for one; the last step's waits until it is there."""
        if progress.step == self._config.train.steps:
            self.save(progress)
        elif self.is_due(progress.step):
            try:
                self._begin(progress)
            except BadInput as error:
                self._tolerate(error)

    def save(self, progress: Progress) -> None:
        """Save the state as it is now and wait until it is there; nothing where it is there already."""
        try:
            self._done(self._saver.wait())
        except BadInput as error:
            self._say(f"{error}; trying once more")
            self._saving = None
        if progress.state() != self._saved:
            self._saver.save(progress.step, *self._state(progress))
            self._save_own(progress.step)
            self._saved = progress.state()

    def poll(self) -> None:
        """Look how the save under way is doing, if there is one; at a step boundary."""
        try:
            self._done(self._saver.poll())
        except BadInput as error:
            self._tolerate(error)

    def settle(self) -> None:
        """Wait until the save under way, if there is one, needs this rank's parameters and optimiser state no longer:
        before anything changes them."""
        self._saver.settle()

    def finish(self) -> None:
        """Wait for the save under way, if there is one."""
        try:
            self._done(self._saver.wait())
        except BadInput as error:
            self._tolerate(error)

    def close(self) -> None:
        """Stop this rank's part of a save under way, without asking the others: for a run that ends by an error."""
        self._saver.abandon()

    def _begin(self, progress: Progress) -> None:
        self._done(self._saver.wait())
        if not self._config.checkpoint.asynchronous:
            self._saver.save(progress.step, *self._state(progress))
            self._save_own(progress.step)
            self._saved, self._failures = progress.state(), 0
            return
        self._saving = progress.state()
        self._saver.begin(progress.step, *self._state(progress))
        self._save_own(progress.step)

    def _save_own(self, step: int) -> None:
        """The same state in the engine's own form, where that is asked for, and none of steps that are kept no more."""
        if self._config.checkpoint.deepspeed:
            assert isinstance(self._engine, OwnForm), "checked: engine.name=deepspeed"
            self._engine.save_own(self._own, step)

    def _state(self, progress: Progress) -> tuple[dict[str, Any], Contents]:
        states = gather(self._loader.state_dict())
        vocabulary = self._corpus.vocabulary
        contents = Contents(
            state={"progress": progress.state(), "loader": merge_states(states)},
            topology={**asdict(self._config.parallel), "data": self._engine.data_size, **engine_of(self._config)},
            vocabulary=vocabulary.describe(),
            texts={
                **vocabulary.files(),
                **codebooks.as_file(self._corpus),
                CONFIG_FILE: to_yaml(self._config),
            },
            origin=lora.origin(self._config.stage.lora),
            backbone=None if self._config.stage.kind is StageKind.decoder else describe(self._config.backbone),
        )
        return self._engine.sharded_state(optimizer=True, loading=False), contents

    def _done(self, checkpoint: Path | None) -> None:
        if checkpoint is not None:
            self._saved, self._saving, self._failures = self._saving, None, 0

    def _tolerate(self, error: BadInput) -> None:
        """Go on without a checkpoint that failed, or raise; the same on all ranks, as the error is."""
        self._saving = None
        self._failures += 1
        allowed = self._config.checkpoint.failures
        if self._failures > allowed:
            raise error
        self._say(f"{error}; training goes on (checkpoint.failures: {self._failures} of {allowed})")

    def _tidy(self) -> None:
        keep = self._config.checkpoint
        prune(self.folder, keep.keep, keep.keep_every, log=self._say)
        if keep.deepspeed:
            kept = {tag_of(step_of(path) or 0) for path in store.complete_checkpoints(self.folder)}
            for path in tagged(self._own):
                if path.name not in kept:
                    remove(path)

    # --- going on -------------------------------------------------------------------------------------------

    def resume(self) -> Progress | None:
        """Take parameters, optimiser and loader state from the newest usable checkpoint; None where there is none."""
        self.finish()
        checkpoint = self._newest_usable()
        if checkpoint is None:
            return None
        kept = store.read_state(checkpoint)
        progress = Progress(**kept["progress"])
        # Before its first step an optimiser has no state, and Megatron-Core fails to load one of step 0.
        self.load(checkpoint, optimizer=progress.step > 0)
        self._loader.load_state_dict(kept["loader"])
        self._saved = progress.state()
        self._say(f"resuming from {checkpoint} at step {progress.step}")
        return progress

    def rewind(self, position: int) -> Progress | None:
        """As `resume`, from a checkpoint before which no more than `position` steps of data were read; None, and
        nothing done, where there is none. Newer checkpoints, of a past that is no more, are removed."""
        self.finish()
        found = [self._forget_after(position) if dist.get_rank() == 0 else False]
        dist.broadcast_object_list(found)
        return self.resume() if found[0] else None

    def _forget_after(self, position: int) -> bool:
        """Remove checkpoints that read more data than that, if there is one that did not. For one rank."""
        checkpoints = [path for path in store.complete_checkpoints(self.folder) if not problems(path, contents=False)]
        newer = [path for path in checkpoints if store.read_state(path)["loader"]["step"] > position]
        if len(newer) == len(checkpoints):
            return False
        for path in newer:
            remove(path)
        return True

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

    def start_from(self, checkpoint: Path) -> None:
        """Take the first weights of a new run. Low-rank updates, adapter, encoder and a reward head that the checkpoint
        does not hold stay as they are."""
        state = store.load(checkpoint, self._engine.sharded_state(optimizer=False, loading=True), optional=is_added)
        self._engine.load_state(state, optimizer=False)
        self._say_audio_input(checkpoint)

    def _say_audio_input(self, checkpoint: Path) -> None:
        """Where a stage begins with an adapter or encoder, or ends with one that was there."""
        held = {name.removeprefix(MODEL_PREFIX).partition(".")[0] for name in read_manifest(checkpoint).tensors}
        audio = audio_input_of(self._config)
        for part, here, origin in (
            ("adapter", audio is not None, "drawn"),
            ("encoder", audio is not None and audio.encoder.in_model, "as published"),
        ):
            if here and part not in held:
                self._say(f"{checkpoint} has no {part}: this stage's begins {origin}")
            elif part in held and not here:
                self._say(f"warning: {checkpoint} has an {part}, which this stage does not: it is left behind")

    def _newest_usable(self) -> Path | None:
        contents = self._config.checkpoint.verify is Verification.contents
        return store.newest_usable_together(self.folder, log=self._say, contents=contents)
