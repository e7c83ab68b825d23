"""The training loop of one stage on one rank: steps, validation, checkpoints, resume."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from checkpoints.agreement import gather, highest
from checkpoints.layout import step_of
from checkpoints.maps import check_architecture
from checkpoints.vocabulary_surgery import spread
from configs.audio_input import audio_input_of
from configs.checks import check
from configs.checks.ppo import PPO
from configs.schema import Config, StageKind
from data_pipeline.batch import Batch, Pack, collate
from data_pipeline.build import corpus_folder
from data_pipeline.corpus import Corpus
from data_pipeline.layouts import layouts_of
from runtime import startup
from runtime.exits import BadInput, Halted, StoppedEarly
from runtime.signals import StopFlag
from train import reference, weights
from train.checkpointing import Checkpoints
from train.engines import process_groups
from train.engines.build import build_engine
from train.engines.protocol import Engine, Outcome
from train.journal import Journal
from train.material import material_of
from train.models.attention.kernels import check_kernel
from train.models.fp8 import check_fp8_here
from train.models.routing import added
from train.models.speech_lm import check_layouts
from train.objectives.build import check_objective, objective_of
from train.objectives.decoding import check_waves
from train.objectives.next_token import TEXT
from train.objectives.objective import Referring, StageObjective
from train.observe.observer import Observer
from train.observe.phases import CHECKPOINT, INCIDENT, VALIDATION
from train.progress import Feeding, Progress, Tally
from train.reinforcement.prompts import check_prompts
from train.resilience import incidents, watchdog
from train.resilience.guard import Action, Guard
from train.resilience.heartbeats import Pulse
from train.schedule import rate_of_step


def train(config: Config, stop: StopFlag) -> None:
    """Run the stage to its last step, going on from what the run folder holds.

    Raises BadInput for what the user can mend, StoppedEarly where a stop signal ended the run with a checkpoint.
    """
    with _joined(config, stop) as stage:
        stage.run()


def evaluate(config: Config, stop: StopFlag) -> None:
    """Print the validation losses of the run's newest usable checkpoint; nothing is written. Raises BadInput for a
    stage that losses do not measure."""
    if config.stage.objective == PPO:
        raise BadInput("stage.objective=ppo is measured as it trains, by its own answers: see validation.jsonl")
    with _joined(config, stop) as stage:
        stage.evaluate()


def newest_logits(config: Config, stop: StopFlag) -> tuple[list[Pack], torch.Tensor]:
    """The validation packs and, for them, the logits [1, N, V] of the run's newest usable checkpoint. One process."""
    with _joined(config, stop) as stage:
        stage.checkpoints.load_newest()
        packs = stage.material.validation
        logits = stage.engine.logits(collate(packs))
        assert logits is not None, "one process is the last pipeline stage"
        return packs, logits


@contextmanager
def _joined(config: Config, stop: StopFlag) -> Iterator[Stage]:
    """The stage on this rank, in a process group that lasts as long as the context."""
    check(config, int(os.environ.get("WORLD_SIZE", "1")))
    _check_model(config)
    corpus = Corpus.open(corpus_folder(config))
    objective = objective_of(config, corpus)
    startup.passed("corpus")
    device = process_groups.join(config.parallel)
    startup.passed("process group")
    try:
        engine = build_engine(config, corpus.vocabulary.padded_size, objective, device)
        startup.passed("model")
        yield Stage(config, corpus, engine, objective, stop)
    finally:
        process_groups.leave()


def _check_model(config: Config) -> None:
    """Raises BadInput where what is trained cannot take what the mixture's layouts make."""
    layouts = layouts_of(config.mixture.sources)
    if config.stage.kind is StageKind.decoder:
        check_waves(layouts, config.decoder)
        return
    check_architecture(config)
    check_layouts(layouts, audio_input_of(config))
    check_objective(config.stage.objective, layouts)
    if config.stage.objective == PPO:
        check_prompts(layouts)
    check_kernel(config)
    check_fp8_here(config)


class Stage:
    """One stage in progress. All ranks walk through the same steps; rank 0 keeps the journal."""

    def __init__(
        self, config: Config, corpus: Corpus, engine: Engine, objective: StageObjective, stop: StopFlag
    ) -> None:
        self.config = config
        self.corpus = corpus
        self.engine = engine
        self.objective = objective
        self.stop = stop
        self.progress = Progress()
        self.material = material_of(config, corpus, engine, partial(self._between, "answering"))
        self.loader = self.material.loader
        self.feeding = Feeding(self.loader, corpus.vocabulary, audio_input_of(config))
        self.journal: Journal | None = None
        if dist.get_rank() == 0:
            self.journal = Journal(config, corpus, dist.get_world_size(), engine.trained, objective.main)
        self.checkpoints = Checkpoints(config, engine, self.loader, corpus, self.journal, self._say)
        self.observer = Observer(config)
        self.guard = Guard(config.resilience, engine.any)
        self.pulse = Pulse()
        self._before: dict[str, Any] = {}  # the loader's state before the last step's data
        self._settling = 0.0  # seconds that the last update waited for a save

    def run(self) -> None:
        with watchdog.watching(self.config) as self.pulse:
            self._run()

    def _run(self) -> None:
        try:
            startup.passed("loader")
            self._start()
            startup.passed("weights")
            self._validate_if_due()
            startup.passed("validation")
            while self.progress.step < self.config.train.steps:
                profile = self._stop_if_asked(window=self.observer.window_asked())
                step = self.progress.step
                if not self._step(profile):
                    self._end_early()
                    return
                if self.progress.step <= step:
                    continue  # an incident: nothing was learned
                self._note_start()
                self._validate_if_due()
                self._save_if_due()
            self._finish("finished")
        except StoppedEarly as stopped:
            self._save()
            self._finish("stopped")
            raise StoppedEarly(
                f"{stopped}: checkpoint of step {self.progress.step} saved; the same command goes on from there"
            ) from None
        except Halted:
            self._finish("halted")
            raise
        finally:
            self.checkpoints.close()
            self.loader.close()
            self.observer.close()
            if self.journal:
                self.journal.close()

    def evaluate(self) -> None:
        checkpoint = self.checkpoints.load_newest()
        self.progress.step = step_of(checkpoint) or 0
        self._refer()
        terms = self._measure()
        self._say(f"{checkpoint}: " + "  ".join(f"{name} {value:.4f}" for name, value in terms.items()))

    # --- start and resume -----------------------------------------------------------------------------------

    def _start(self) -> None:
        """Go on from the newest usable checkpoint of this run, else from the weights that the stage names."""
        self.material.prepare()
        progress = self.checkpoints.resume()
        if progress is not None:
            self.progress = progress
            self.feeding.restart()
            self.guard.restore(progress.guard)
        else:
            source = weights.source(self.config)
            if source is not None:
                self.checkpoints.start_from(source)
                self._say(f"starting from the weights in {source}")
            vocabulary = self.corpus.vocabulary
            for name, points in weights.audio_rows(self.config, self.corpus).items():
                self.engine.place_rows(vocabulary.ranges[name].start, partial(spread, points), vocabulary.text_size)
                self._say(f"rows of {len(points)} {name} codes start from the codec's centroids")
        if self.journal:
            self.journal.start(self.progress)
        self.checkpoints.prepare()
        self._refer()

    def _refer(self) -> None:
        """Give an objective that compares with the stage's first weights what those say."""
        if isinstance(self.objective, Referring):
            begun = self.progress.step > 0
            between = partial(self._between, "measuring the first weights")
            found = reference.measured(
                self.config, self.corpus, self.engine, self.objective, begun=begun, between=between
            )
            self.objective.references.update(found)

    def _between(self, phase: str) -> None:
        """Between two parts of something long, which all ranks do: they leave together, or go on."""
        self._stop_if_asked()
        self._at(phase)

    def _note_start(self) -> None:
        """Once, after the first step: write down what the time to it went into."""
        startup.passed("first step")
        if (phases := startup.done()) and self.journal:
            self.journal.started(self.progress.step, phases)

    # --- steps ----------------------------------------------------------------------------------------------

    def _step(self, profile: bool) -> bool:
        """Train one step; `profile`: a profiler window was asked for. False, and nothing done, where no rank has data
        for one."""
        step = self.progress.step + 1
        if opened := self.observer.before_step(step, profile):
            self._say(opened)
        started = time.perf_counter()
        observed: dict[str, float] = {"queue": self.loader.ready, "saving": float(self.checkpoints.under_way)}
        packs, waited = self._next_packs()
        if packs is None:
            return False
        observed |= self.loader.figures
        startup.passed("first batch")
        self._at("training")
        rate = rate_of_step(self.config, step)
        fed = self.feeding.tally(packs)
        outcome = self.engine.train_step(
            self._micro_batches(packs), rate, fed.numbers(), self._accept, norms=self.observer.norms_due(step)
        )
        total = fed.summed(outcome.extra)
        if self.guard.incident:
            self._after_incident(packs, outcome, total)
            self.observer.add(INCIDENT, time.perf_counter() - started)
            return True
        terms = self.objective.averages(outcome.sums, outcome.counts) | outcome.routing.averages()
        samples = self._global_keys(packs) if self.config.train.log_samples else None
        self.guard.learn(self.loader.position - 1, terms[self.objective.main], outcome.gradient_norm or 0.0)
        self.progress.add(total)
        seconds = time.perf_counter() - started - self._settling  # which is told as a checkpoint's
        observed |= self.observer.after_step(step, seconds, waited, outcome)
        if self.journal:
            self.journal.step(
                self.progress, terms, outcome.gradient_norm, rate, total, seconds, waited, samples, observed
            )
            for change in self.observer.changes:
                self.journal.straggler(change)
        return True

    def _next_packs(self) -> tuple[list[Pack] | None, float]:
        """This rank's packs of the next step that is not left out, None where no rank has data for one; and the seconds
        that its own loader took."""
        self._at("reading data")
        waited = 0.0
        while True:
            if self.loader.bounded:
                began = time.perf_counter()
                more = self.loader.has_next()
                waited += time.perf_counter() - began
                if not self.engine.any(more):
                    return None, waited
            position = self.loader.position
            self._before = self.loader.state_dict()
            began = time.perf_counter()
            packs = self.loader.next_step()
            waited += time.perf_counter() - began
            if not self.guard.leaves_out(position):
                return packs, waited

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

    def _micro_batches(self, packs: list[Pack]) -> list[Batch]:
        size = self.config.train.micro_batch
        sources = self.objective.sources
        return [collate(packs[start : start + size], sources) for start in range(0, len(packs), size)]

    def _global_keys(self, packs: list[Pack]) -> list[list[str]]:
        """Sample keys of every pack of the step, in global order."""
        by_rank = dict(gather((self.engine.data_rank, [list(pack.keys) for pack in packs])))
        return [by_rank[rank][turn] for turn in range(len(packs)) for rank in range(self.engine.data_size)]

    # --- incidents ------------------------------------------------------------------------------------------

    def _accept(self, outcome: Outcome) -> bool:
        """Whether the engine may apply the update of a step with this outcome, as it does when this returns."""
        self._at("updating")
        terms = self.objective.averages(outcome.sums, outcome.counts)
        accepted = self.guard.accept(terms[self.objective.main], outcome.gradient_norm or 0.0)
        self._settling = 0.0
        if self.checkpoints.under_way:
            began = time.perf_counter()
            with self.observer.between_steps(CHECKPOINT):
                self.checkpoints.settle()
            self._settling = time.perf_counter() - began
        return accepted

    def _after_incident(self, packs: list[Pack], outcome: Outcome, fed: Tally) -> None:
        """Write down a step that was not learned from, and do what the policy says. Raises Halted where that is to
        stop."""
        self._at("after an incident")
        position = self.loader.position - 1
        action = self.guard.decide(position)
        assert self.guard.incident is not None
        size = self.config.train.micro_batch
        samples = [
            [key for pack in packs[start : start + size] for key in pack.keys] for start in range(0, len(packs), size)
        ]
        incident = incidents.Incident(
            step=self.progress.step + 1,
            position=position,
            kind=self.guard.incident,
            action=action,
            loss=self.objective.averages(outcome.sums, outcome.counts)[self.objective.main],
            gradient_norm=outcome.gradient_norm or 0.0,
            limits=self.guard.limits,
            ranks=incidents.gather(self.engine.evidence(), self.engine.data_rank, samples),
        )
        if self.journal:
            incidents.write(Path(self.config.run.folder), incident)
            self.journal.note(f"warning: {incident.line}")
        if action is Action.stop:
            raise Halted(f"{incident.line}; {self.guard.why_stopped}")
        if action is Action.redo:
            self._rewind(position, self._before)
        else:
            self.progress.leave_out(fed)
            first = self.guard.first_left_out(position)
            if action is Action.leave_out and first < position:
                self._rewind(first, None)

    def _rewind(self, position: int, otherwise: dict[str, Any] | None) -> None:
        """Go back to where no data at or beyond `position` was read. Where no checkpoint is that old, parameters stay
        as they are, since no update was applied, and the loader goes to its state `otherwise`, if there is one."""
        progress = self.checkpoints.rewind(position)
        if progress is not None:
            self.progress = progress
            self.guard.restore(progress.guard)
            if self.journal:
                self.journal.rewind(progress.step)
        elif otherwise is not None:
            self.loader.load_state_dict(otherwise)
        self.feeding.restart()

    # --- validation -----------------------------------------------------------------------------------------

    def _validate_if_due(self) -> None:
        step, every = self.progress.step, self.config.train.validate_every
        if not every or step == self.progress.validated:
            return
        if step % every == 0 or step == self.config.train.steps:
            self._validate()

    def _validate(self) -> None:
        started = time.perf_counter()
        with self.observer.between_steps(VALIDATION):
            measured = self.material.measured
            terms, figures = ({}, measured()) if measured else (self._measure(), {})
        self.progress.validated = self.progress.step
        if self.journal:
            self.journal.validation(self.progress.step, terms, figures, time.perf_counter() - started)

    def _measure(self) -> dict[str, float]:
        """Losses over the fixed validation packs, and of text that was given another one's sound. A stop signal
        abandons it; the resumed run measures again."""
        terms = self._losses(self.material.validation)
        if self.material.control and TEXT in terms:
            terms[f"{TEXT}_shuffled"] = self._losses(self.material.control)[TEXT]
        return terms

    def _losses(self, packs: list[Pack]) -> dict[str, float]:
        sums, counts, routing = np.zeros(self.objective.terms), np.zeros(self.objective.terms), []
        batches = self._micro_batches(packs)
        together = self.config.parallel.pipeline  # enough micro-batches a time to fill the pipeline
        for start in range(0, len(batches), together):
            self._stop_if_asked()
            self._at("validating")
            outcome = self.engine.evaluate(batches[start : start + together], [])
            sums += outcome.sums
            counts += outcome.counts
            routing.append(outcome.routing)
        return self.objective.averages(sums.tolist(), counts.tolist()) | added(routing).averages()

    # --- saving and stopping -------------------------------------------------------------------------------

    def _stop_if_asked(self, *, window: bool = False) -> bool:
        """Leave together: a signal to any one rank stops all of them at the same place. Returns whether any of them was
        asked for a profiler `window`; both are agreed on in one go."""
        stop, profile = highest(int(bool(self.stop)), int(window))
        if stop:
            raise StoppedEarly(f"stopped by {self.stop.name or 'a signal to another rank'}")
        return bool(profile)

    def _save(self) -> None:
        self._at("saving")
        self.progress.guard = self.guard.state()
        with self.observer.between_steps(CHECKPOINT):
            self.checkpoints.save(self.progress)

    def _save_if_due(self) -> None:
        """The periodic save, and at every step a look at how the one before is doing."""
        with self.observer.between_steps(CHECKPOINT):
            self.checkpoints.poll()
            if self.checkpoints.is_due(self.progress.step):
                self._at("saving")
                self.progress.guard = self.guard.state()
                self.checkpoints.save_if_due(self.progress)

    def _finish(self, status: str) -> None:
        if self.journal:
            self.journal.finish(status, self.progress, self.observer.totals)

    def _at(self, phase: str) -> None:
        """Tell the watchdog where this rank is."""
        self.pulse.move(phase, self.progress.step)

    def _say(self, line: str) -> None:
        if dist.get_rank() == 0:
            print(f"megaphone: {line}", flush=True)
