"""The training loop of one stage on one rank: steps, validation, checkpoints, resume."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from checkpoints import store
from configs.checks import check
from configs.compose import to_yaml
from configs.schema import Config
from data_pipeline.batch import Batch, Pack, collate
from data_pipeline.build import corpus_folder
from data_pipeline.corpus import Corpus
from data_pipeline.layouts import layouts_of
from data_pipeline.loader import make_loader, merge_states, validation_packs
from runtime.exits import BadInput, StoppedEarly
from runtime.signals import StopFlag
from train import weights
from train.engines import process_groups
from train.engines.megatron import MegatronEngine
from train.engines.protocol import Engine
from train.journal import Journal
from train.models.speech_lm import check_layouts
from train.objectives.pretrain import NextToken
from train.progress import Progress, Tally, tally
from train.schedule import learning_rate

CONFIG_FILE = "config.yaml"


def train(config: Config, stop: StopFlag) -> None:
    """Run the stage to its last step, going on from what the run folder holds.

    Raises BadInput for what the user can mend, StoppedEarly where a stop signal ended the run with a checkpoint.
    """
    with _joined(config, stop) as stage:
        stage.run()


def evaluate(config: Config, stop: StopFlag) -> None:
    """Print the validation losses of the run's newest usable checkpoint; nothing is written."""
    with _joined(config, stop) as stage:
        stage.evaluate()


def newest_logits(config: Config, stop: StopFlag) -> tuple[list[Pack], torch.Tensor]:
    """The validation packs and, for them, the logits [1, N, V] of the run's newest usable checkpoint. One process."""
    with _joined(config, stop) as stage:
        stage.load_newest()
        logits = stage.engine.logits(collate(stage.validation))
        assert logits is not None, "one process is the last pipeline stage"
        return stage.validation, logits


@contextmanager
def _joined(config: Config, stop: StopFlag) -> Iterator[Stage]:
    """The stage on this rank, in a process group that lasts as long as the context."""
    check(config, int(os.environ.get("WORLD_SIZE", "1")))
    check_layouts(layouts_of(config.mixture.sources))
    corpus = Corpus.open(corpus_folder(config))
    objective = NextToken(corpus.vocabulary.modalities, config.loss)
    device = process_groups.join(config.parallel)
    try:
        engine = MegatronEngine(config, corpus.vocabulary.padded_size, objective, device)
        yield Stage(config, corpus, engine, objective, stop)
    finally:
        process_groups.leave()


class Stage:
    """One stage in progress. All ranks walk through the same steps; rank 0 keeps the journal."""

    def __init__(self, config: Config, corpus: Corpus, engine: Engine, objective: NextToken, stop: StopFlag) -> None:
        self.config = config
        self.corpus = corpus
        self.engine = engine
        self.objective = objective
        self.stop = stop
        self.checkpoints = Path(config.run.folder) / "checkpoints"
        self.progress = Progress()
        self._damage_told: dict[str, int] = {}  # what the loader had counted when the last step was fed
        ranks = {"rank": engine.data_rank, "world": engine.data_size}
        self.loader = make_loader(config, corpus, split="train", **ranks)
        self.validation = validation_packs(config, corpus, **ranks)
        self.journal = Journal(config, corpus, dist.get_world_size()) if dist.get_rank() == 0 else None

    def run(self) -> None:
        try:
            self._start()
            self._validate_if_due()
            while self.progress.step < self.config.train.steps:
                self._stop_if_asked()
                if not self._step():
                    self._end_early()
                    return
                self._validate_if_due()
                if self._checkpoint_is_due():
                    self._save()
            self._finish("finished")
        except StoppedEarly as stopped:
            self._save()
            self._finish("stopped")
            raise StoppedEarly(
                f"{stopped}: checkpoint of step {self.progress.step} saved; the same command goes on from there"
            ) from None
        finally:
            self.loader.close()
            if self.journal:
                self.journal.close()

    def evaluate(self) -> None:
        checkpoint = self.load_newest()
        terms = self._measure()
        self._say(f"{checkpoint}: " + "  ".join(f"{name} {value:.4f}" for name, value in terms.items()))

    def load_newest(self) -> Path:
        """Parameters of the newest usable checkpoint, to look at them. Raises BadInput where there is none."""
        checkpoint = self._newest_usable()
        if checkpoint is None:
            raise BadInput(f"{self.checkpoints} holds no usable checkpoint")
        state = store.load(checkpoint, self.engine.sharded_state(optimizer=False, loading=True))
        self.engine.load_state(state, optimizer=False)
        return checkpoint

    # --- start and resume -----------------------------------------------------------------------------------

    def _start(self) -> None:
        """Go on from the newest usable checkpoint of this run, else from the weights that the stage names."""
        checkpoint = self._newest_usable()
        if checkpoint is not None:
            kept = store.read_state(checkpoint)
            self.progress = Progress(**kept["progress"])
            # Before its first step an optimiser has no state, and Megatron-Core fails to load one of step 0.
            stepped = self.progress.step > 0
            state = store.load(checkpoint, self.engine.sharded_state(optimizer=stepped, loading=True))
            self.engine.load_state(state, optimizer=stepped)
            self.loader.load_state_dict(kept["loader"])
            self._damage_told = self.loader.damaged
            self._say(f"resuming from {checkpoint} at step {self.progress.step}")
        else:
            source = weights.source(self.config)
            if source is not None:
                state = store.load(source, self.engine.sharded_state(optimizer=False, loading=True))
                self.engine.load_state(state, optimizer=False)
                self._say(f"starting from the weights in {source}")
            vocabulary = self.corpus.vocabulary
            for name, points in weights.audio_rows(self.config, self.corpus).items():
                self.engine.place_rows(vocabulary.ranges[name].start, points, vocabulary.text_size)
                self._say(f"rows of {len(points)} {name} codes start from the codec's centroids")
        if self.journal:
            self.journal.start(self.progress)

    def _newest_usable(self) -> Path | None:
        """Rank 0 verifies and all follow: reading every byte on every rank would flood the file system."""
        found = [store.newest_usable(self.checkpoints, log=self._say) if dist.get_rank() == 0 else None]
        dist.broadcast_object_list(found)
        return found[0]

    # --- steps ----------------------------------------------------------------------------------------------

    def _step(self) -> bool:
        """Train one step. False, and nothing done, where no rank has data for one."""
        started = time.perf_counter()
        if self.loader.bounded and not self.engine.any(self.loader.has_next()):
            return False
        packs = self.loader.next_step()
        waited = time.perf_counter() - started
        step = self.progress.step + 1
        rate = learning_rate(self.config.optimizer, step, self.config.train.steps)
        fed = tally(packs, self.corpus.vocabulary, self._new_damage())
        outcome = self.engine.train_step(self._micro_batches(packs), rate, fed.numbers())
        terms = self.objective.averages(outcome.sums, outcome.counts)
        samples = self._global_keys(packs) if self.config.train.log_samples else None
        if not math.isfinite(terms["lm"]):
            raise FloatingPointError(f"loss is {terms['lm']} at step {step}; the last checkpoint is from before it")

        total = Tally.from_numbers(outcome.extra)
        self.progress.add(total)
        if self.journal:
            seconds = time.perf_counter() - started
            self.journal.step(self.progress, terms, outcome.gradient_norm, rate, total, seconds, waited, samples)
        return True

    def _end_early(self) -> None:
        """Finish a stage whose sources have all been read as often as their `epochs` allow."""
        step = self.progress.step
        self._say(
            f"the mixture has no more data: every source was read its `epochs` times by step {step} of "
            f"{self.config.train.steps}; training ends here"
        )
        if self.config.train.validate_every and step != self.progress.validated:
            self._validate()
        self._save()
        self._finish("exhausted")

    def _new_damage(self) -> dict[str, int]:
        """Samples that this rank's loader found damaged since this was last asked, by kind."""
        before, self._damage_told = self._damage_told, self.loader.damaged
        return {kind: count - before.get(kind, 0) for kind, count in self._damage_told.items()}

    def _micro_batches(self, packs: list[Pack]) -> list[Batch]:
        size = self.config.train.micro_batch
        return [collate(packs[start : start + size]) for start in range(0, len(packs), size)]

    def _global_keys(self, packs: list[Pack]) -> list[list[str]]:
        """Sample keys of every pack of the step, in global order."""
        mine = (self.engine.data_rank, [list(pack.keys) for pack in packs])
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, mine)
        by_rank = dict(gathered)
        return [by_rank[rank][turn] for turn in range(len(packs)) for rank in range(self.engine.data_size)]

    # --- validation -----------------------------------------------------------------------------------------

    def _validate_if_due(self) -> None:
        step, every = self.progress.step, self.config.train.validate_every
        if not every or step == self.progress.validated:
            return
        if step % every == 0 or step == self.config.train.steps:
            self._validate()

    def _validate(self) -> None:
        started = time.perf_counter()
        terms = self._measure()
        self.progress.validated = self.progress.step
        if self.journal:
            self.journal.validation(self.progress.step, terms, time.perf_counter() - started)

    def _measure(self) -> dict[str, float]:
        """Losses over the fixed validation packs. A stop signal abandons it; the resumed run measures again."""
        sums, counts = np.zeros(self.objective.terms), np.zeros(self.objective.terms)
        batches = self._micro_batches(self.validation)
        together = self.config.parallel.pipeline  # enough micro-batches a time to fill the pipeline
        for start in range(0, len(batches), together):
            self._stop_if_asked()
            outcome = self.engine.evaluate(batches[start : start + together], [])
            sums += outcome.sums
            counts += outcome.counts
        return self.objective.averages(sums.tolist(), counts.tolist())

    # --- checkpoints and stopping ---------------------------------------------------------------------------

    def _stop_if_asked(self) -> None:
        """Leave together: a signal to any one rank stops all of them at the same place."""
        if self.engine.any(bool(self.stop)):
            raise StoppedEarly(f"stopped by {self.stop.name or 'a signal to another rank'}")

    def _checkpoint_is_due(self) -> bool:
        every = self.config.checkpoint.every
        return self.progress.step == self.config.train.steps or (every > 0 and self.progress.step % every == 0)

    def _save(self) -> None:
        states: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(states, self.loader.state_dict())
        vocabulary = self.corpus.vocabulary
        if self.journal:
            self.journal.sync()
        store.save(
            self.checkpoints,
            self.progress.step,
            self.engine.sharded_state(optimizer=True, loading=False),
            state={"progress": self.progress.state(), "loader": merge_states(states)},
            topology={**asdict(self.config.parallel), "data": self.engine.data_size},
            vocabulary=vocabulary.describe(),
            texts={**vocabulary.files(), CONFIG_FILE: to_yaml(self.config)},
        )
        if dist.get_rank() == 0:
            store.prune(self.checkpoints, self.config.checkpoint.keep)

    def _finish(self, status: str) -> None:
        if self.journal:
            self.journal.finish(status, self.progress)

    def _say(self, line: str) -> None:
        if dist.get_rank() == 0:
            print(f"megaphone: {line}", flush=True)
