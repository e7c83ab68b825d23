"""What rank 0 writes down about a run: metric files, the console, the tracker, results.json."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from configs.schema import Config, StageKind
from data_pipeline.corpus import Corpus
from data_pipeline.entropy import unigram_entropy
from runtime import records
from runtime.run_files import RESULTS_FILE, STARTS_FILE
from train.audio_input import heard_passes
from train.console import Console
from train.flops import Learning, Recomputed, device_peak_flops, step_flops
from train.metrics import MetricLog, read_validation
from train.progress import Progress, Tally
from train.resilience import stragglers
from train.tracker import Tracker
from train.trainable import Trained

SHORTEST_SHOWN = 0.05  # seconds of a phase that rounds to something


class Journal:
    """Opened by `start`, once it is known at which step the run begins or goes on."""

    def __init__(self, config: Config, corpus: Corpus, processes: int, trained: Trained, main: str) -> None:
        """main: the term that is told as the loss."""
        self._config = config
        self._corpus = corpus
        self._folder = Path(config.run.folder)
        self._began = time.monotonic()
        device = torch.cuda.get_device_name() if torch.version.cuda and torch.cuda.is_available() else "cpu"
        told = config.observe.peak_teraflops
        self._peak = told * 1e12 if told else device_peak_flops(device, config.train.precision)
        self._processes = processes
        self._trained = trained
        self._main = main
        self._learning = Learning.of(config.stage, trained)
        self._recomputed = Recomputed.of(config, corpus.vocabulary.padded_size)

    def start(self, progress: Progress) -> None:
        self._log = MetricLog(self._folder, progress.step)
        self._console = Console(self._config.train.steps, progress.step, self._config.tracker.console_every)
        config = self._config
        self._tracker = Tracker(config.tracker, self._folder, config.run.name, asdict(config))
        self._damage_said = set(progress.damaged)
        self._console.note(self._trained.describe())

    def started(self, step: int, phases: Mapping[str, float]) -> None:
        """The first `step` since the command is done, after these seconds: one line of starts.jsonl, and one for the
        console."""
        total = sum(phases.values())
        records.append(
            self._folder / STARTS_FILE, {"time": time.time(), "step": step, "seconds": total, "phases": dict(phases)}
        )
        longer = ", ".join(f"{phase} {spent:.1f}" for phase, spent in phases.items() if spent >= SHORTEST_SHOWN)
        self.note(f"step {step} done {total:.1f} s after the command: {longer}")

    def step(
        self,
        progress: Progress,
        terms: dict[str, float],
        gradient_norm: float | None,
        rate: float,
        fed: Tally,
        seconds: float,
        waited: float,
        samples: list[list[str]] | None,
        observed: Mapping[str, Any],
    ) -> None:
        """One line of metrics.jsonl. `waited`: seconds of the step in which the loader kept rank 0 waiting; `observed`:
        what `Observer.after_step` made of it."""
        record: dict[str, Any] = {
            "step": progress.step,
            "tokens": progress.tokens,
            "audio_hours": progress.audio_seconds / 3600,
            "loss": terms[self._main],
            **_named_losses(terms),
            "grad_norm": gradient_norm,
            **{f"lr/{name}": rate * group.lr_multiplier for name, group in self._trained.groups.items()},
            "seconds": seconds,
            "tokens_per_second": fed.tokens / seconds,
            "audio_hours_per_second": fed.audio_seconds / 3600 / seconds,
            **self._utilisation(fed, seconds),
            "padding": fed.padding / (fed.tokens + fed.padding),
            "data_wait": waited / seconds,
            **{
                f"modality/{name}": tokens / fed.tokens
                for name, tokens in zip(self._corpus.vocabulary.modalities, fed.modalities, strict=True)
            },
            **{f"source/{name}": tokens / fed.tokens for name, tokens in fed.sources.items()},
            **{f"damaged/{kind}": count for kind, count in progress.damaged.items()},
            **{f"damaged_from/{source}": count for source, count in progress.damaged_from.items()},
            **observed,
        }
        if samples is not None:
            record["samples"] = samples
        self._log.step(record)
        self._say_damage(progress)
        self._console.step(record)
        self._tracker.log(record, progress.step)

    def validation(self, step: int, terms: dict[str, float], figures: Mapping[str, float], seconds: float) -> None:
        """One line of validation.jsonl: losses, or other `figures` by the names that they have there."""
        losses = {"loss": terms[self._main], **_named_losses(terms)} if terms else {}
        record = {"step": step, **losses, **figures, "seconds": seconds}
        self._log.validation(record)
        self._console.validation(record)
        self._tracker.log(record, step, prefix="validation/")

    def rewind(self, step: int) -> None:
        """Take back all lines of steps after `step`: the run is about to repeat them."""
        self._log.close()
        self._log = MetricLog(self._folder, step)

    def straggler(self, change: stragglers.Change) -> None:
        """A rank has become slow, or is so no longer: one line of stragglers.jsonl, and one for the console."""
        stragglers.write(self._folder, change)
        self.note(f"warning: {change.line}" if change.slow else change.line)

    def note(self, line: str) -> None:
        """A line for the console."""
        self._console.note(f"megaphone: {line}")

    def sync(self) -> None:
        """Put every line on disk, so that no checkpoint outlives the curve behind it."""
        self._log.sync()

    def finish(self, status: str, progress: Progress, spent: Mapping[str, float]) -> None:
        """Write results.json: how the run ended ("finished", "exhausted" of its data, "stopped"), what it reached, and
        on what it `spent` its seconds since it was last started."""
        validations = read_validation(self._folder)
        entropy = unigram_entropy(self._corpus, "train")
        results = {
            "status": status,
            "step": progress.step,
            "steps": self._config.train.steps,
            "tokens": progress.tokens,
            "audio_hours": progress.audio_seconds / 3600,
            "parameters": {"all": sum(self._trained.elements.values()), "trained": self._trained.counts()},
            "entropy": entropy,
            "validation": {"before": validations[0], "after": validations[-1]} if validations else {},
            "corpus": str(self._corpus.folder),
            "corpus_hash": self._corpus.content_hash,
            "damaged": progress.damaged,
            "damaged_from": progress.damaged_from,
            "left_out": self._corpus.left_out,
            "wall_seconds": time.monotonic() - self._began,
            "seconds": dict(spent),
        }
        partial = self._folder / f"{RESULTS_FILE}.partial"
        partial.write_text(json.dumps(results, indent=2), encoding="utf-8")
        os.replace(partial, self._folder / RESULTS_FILE)
        for line in _summary(validations, entropy["audio"]):
            self._console.note(line)

    def close(self) -> None:
        for part in ("_log", "_console", "_tracker"):
            if hasattr(self, part):
                getattr(self, part).close()

    def _say_damage(self, progress: Progress) -> None:
        """A line when the first damaged sample of a kind was met."""
        for kind, count in progress.damaged.items():
            if kind not in self._damage_said:
                self._damage_said.add(kind)
                samples = "sample" if count == 1 else "samples"
                self._console.note(
                    f"damaged data by step {progress.step}: {count} {samples} of kind {kind}, left out; the count goes "
                    f"on as damaged/{kind} in metrics.jsonl"
                )

    def _utilisation(self, fed: Tally, seconds: float) -> dict[str, float | None]:
        """Model TFLOP/s of one device, and MFU and HFU, None where no peak is known; nothing of a decoder, whose FLOPs
        nobody has counted."""
        if self._config.stage.kind is StageKind.decoder:
            return {}
        vocabulary = self._corpus.vocabulary.padded_size
        flops = step_flops(
            self._config.backbone,
            vocabulary,
            fed.tokens,
            fed.attended,
            self._learning,
            self._recomputed,
            0.0 if self._config.stage.objective == "reward" else fed.predicted,  # nobody asks for logits
            heard_passes(self._config, fed.heard, self._trained.trains),
        )
        of_a_device = seconds * self._processes
        return {
            "teraflops": flops.model / of_a_device / 1e12,
            "mfu": flops.model / of_a_device / self._peak if self._peak else None,
            "hfu": flops.hardware / of_a_device / self._peak if self._peak else None,
        }


def _summary(validations: list[dict[str, Any]], entropy: float) -> list[str]:
    """What the run reached, against knowing only how often each audio code occurs."""
    if not validations:
        return []
    before, after = validations[0], validations[-1]
    lines = []
    if "loss/audio" in after and entropy:
        share = 100 * (1 - after["loss/audio"] / entropy)
        lines.append(
            f"audio validation loss {after['loss/audio']:.3f} nats a token, {share:.1f} % below the unigram entropy of "
            f"the corpus's audio codes, {entropy:.3f}"
        )
    if "loss/text" in after:
        lines.append(f"text validation loss {before.get('loss/text', float('nan')):.3f} -> {after['loss/text']:.3f}")
    if "ppo/reward" in after:
        lines.append(
            f"reward of answers to held-out questions {before['ppo/reward']:.3f} -> {after['ppo/reward']:.3f}, at a "
            f"KL of {after['ppo/kl']:.3f} nats an answer to the reference"
        )
    if "loss/text_shuffled" in after:
        control = after["loss/text_shuffled"]
        lines.append(
            f"text validation loss given another one's sound {control:.3f}: hearing its own is worth "
            f"{control - after['loss/text']:.3f} nats a token"
        )
    return lines


def _named_losses(terms: dict[str, float]) -> dict[str, float]:
    return {f"loss/{name}": value for name, value in terms.items()}
