"""What the weights that a stage begins with say of its answers: measured before the first step, once, and kept.

So no second model is in memory, whether the stage trains all parameters or low-rank updates, and the topology is the
stage's own. `<run>/reference` has a file for every `PART` documents, written when they are measured; a run that was
killed goes on with the next.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import xxhash

from checkpoints.agreement import gather, highest, on_first_rank, together
from checkpoints.atomic import write_file
from checkpoints.manifest import MANIFEST_FILE
from configs.schema import Config
from data_pipeline.batch import Batch, Sample, collate
from data_pipeline.corpus import Corpus
from data_pipeline.damage import DamageTally
from data_pipeline.mixture import Source, open_mixture
from data_pipeline.packing import fill_packs, filler
from runtime.exits import BadInput
from train import weights
from train.engines.protocol import Engine
from train.models.heads.terms import Losses, Targets
from train.objectives.objective import Referring
from train.objectives.preference import pair_of

FOLDER = "reference"
ABOUT = "about.json"  # what decides the numbers
PART = 256  # documents
_DOING = "cannot keep references"

Answers = dict[str, tuple[float, float]]  # log-probabilities of chosen and rejected, by `pair_of`


@dataclass(frozen=True)
class Part:
    """Documents `first` to `end` of a source, and the file that holds what was measured of them."""

    source: Source
    first: int
    end: int
    file: str


def measured(
    config: Config, corpus: Corpus, engine: Engine, objective: Referring, *, begun: bool, between: Callable[[], None]
) -> Answers:
    """The log-probabilities of all answers that the stage's mixture has, validation's too where there is any.

    All ranks call this, and `between` before every part. The engine holds the stage's first weights, unless training
    has `begun`: then all is there, or BadInput is raised. What was measured with other weights, layouts or documents is
    measured anew.
    """
    folder = Path(config.run.folder) / FOLDER
    parts = list(_parts(config, corpus))
    about = None if begun else {**_stream(config, parts), **_first_weights(config)}
    looked = together(lambda: _kept(folder, about) if dist.get_rank() == 0 else set(), _DOING)
    kept = gather(looked)[0]
    found: Answers = {}
    for part in parts:
        between()
        path = folder / part.file
        if part.file in kept:
            found |= {key: (chosen, rejected) for key, (chosen, rejected) in json.loads(path.read_text()).items()}
        elif begun:
            raise BadInput(f"{path} is gone, and the weights that it was measured with too; begin the run again")
        else:
            answers = _measure(config, engine, objective, part)
            on_first_rank(partial(write_file, path, json.dumps(answers)), _DOING)
            found |= answers
    return found


@dataclass(frozen=True)
class _EachAnswer:
    """An objective that only looks: every answer of a part is a term. numbers: of this rank's pairs, by `pair_of`."""

    objective: Referring
    numbers: Mapping[str, int]
    terms: int

    def targets(self, batch: Batch) -> Targets:
        return self.objective.targets(batch)

    def counts(self, batch: Batch) -> torch.Tensor:
        return self._placed(torch.ones(len(self._numbers(batch)), 2, dtype=torch.float64), batch)

    def sums(self, losses: Losses, batch: Batch) -> torch.Tensor:
        return self._placed(self.objective.log_probabilities(losses, batch), batch)

    def loss(self, losses: Losses, batch: Batch, counts: torch.Tensor) -> torch.Tensor:
        return counts.new_zeros((), dtype=torch.float32)

    def _numbers(self, batch: Batch) -> list[int]:
        return [self.numbers[pair_of(key)] for key in batch.pairs.keys] if batch.pairs else []

    def _placed(self, values: torch.Tensor, batch: Batch) -> torch.Tensor:
        placed = values.new_zeros(self.terms // 2, 2)
        placed[self._numbers(batch)] = values
        return placed.flatten()


def _measure(config: Config, engine: Engine, objective: Referring, part: Part) -> Answers:
    """The answers of a part, whose documents the data-parallel ranks share out."""
    mine: list[Sample] = []
    numbers: dict[str, int] = {}
    for number in range(part.first + engine.data_rank, part.end, engine.data_size):
        for sample in part.source.samples(number, 0, config.train.sequence_length):
            numbers[pair_of(sample.key)] = number - part.first
            mine.append(sample)
    batches = _batches(config, part.source, mine)
    if not batches:
        return {}
    outcome = engine.evaluate(batches, [], _EachAnswer(objective, numbers, 2 * (part.end - part.first)))
    names = {number: key for known in gather(numbers) for key, number in known.items()}
    return {
        names[number]: (outcome.sums[2 * number], outcome.sums[2 * number + 1])
        for number in sorted(names)
        if outcome.counts[2 * number]
    }


def _batches(config: Config, source: Source, samples: list[Sample]) -> list[Batch]:
    """Micro-batches, as many on every rank, and enough to fill the pipeline."""
    length, size = config.train.sequence_length, config.train.micro_batch
    end_of_text = source.vocabulary.special(source.vocabulary.end_of_text)
    packs = fill_packs(samples, length, end_of_text) if samples else []
    unit = size * config.parallel.pipeline
    (most,) = highest(-(-len(packs) // unit) * unit)
    packs += [filler(length, end_of_text)] * (most - len(packs))
    return [collate(packs[start : start + size]) for start in range(0, most, size)]


def _parts(config: Config, corpus: Corpus) -> Iterator[Part]:
    for split in ("train", "valid") if config.train.validate_every else ("train",):
        for source in open_mixture(config, corpus, split, DamageTally(allowed_share=1.0)).sources:
            for first in range(0, len(source.documents), PART):
                end = min(first + PART, len(source.documents))
                yield Part(source, first, end, f"{split}-{source.name}-{first:08d}.json")


def _stream(config: Config, parts: list[Part]) -> dict[str, Any]:
    return {
        "sources": {part.source.name: part.source.describe() for part in parts},
        "sequence_length": config.train.sequence_length,
        "modalities": config.loss.modalities,
    }


def _first_weights(config: Config) -> dict[str, Any]:
    """What tells the first weights from others: the checkpoint's manifest, which has checksums of all its files."""
    source = weights.source(config)
    if source is None:
        return {"seed": config.train.seed}
    return {"weights": xxhash.xxh3_128_hexdigest((source / MANIFEST_FILE).read_bytes())}


def _kept(folder: Path, about: dict[str, Any] | None) -> set[str]:
    """The files that are there, after those `about` something else are removed (None: nothing is). For one rank."""
    if about is not None:
        text = json.dumps(about, sort_keys=True, indent=2) + "\n"
        if not (folder / ABOUT).is_file() or (folder / ABOUT).read_text() != text:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write_file(folder / ABOUT, text)
    return {path.name for path in folder.glob("*.json")}
