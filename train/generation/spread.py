"""Asking a teacher that is spread over ranks: the first rank of every copy asks as a lone process does, the others
read with it what it says.

So leaders alone read the corpus, hold pieces and write files, and the ranks of a copy always do the same.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.distributed as dist

from configs.checks import check
from configs.schema import Config
from data_pipeline.answers import Answers
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput, StoppedEarly
from runtime.signals import StopFlag
from train.engines import process_groups
from train.generation.asking import Inquiry, Question, answers_of
from train.inference.megatron import Reader, as_exported
from train.inference.replica import Replica
from train.inference.rows import Reading, Said, lay, said
from train.models.heads.likeliest import Asked


def ask(config: Config, export: Path, inquiry: Inquiry, stop: StopFlag) -> None:
    """This rank's part in asking about all pieces; returns when they are there.

    Raises BadInput, before any process group, where the export does not go on the stage's topology; StoppedEarly at a
    stop signal to any rank of the copy.
    """
    check(config, int(os.environ.get("WORLD_SIZE", "1")))
    model, rows = as_exported(config, export)
    vocabulary = Vocabulary.load(export)
    if rows < vocabulary.size:
        raise BadInput(f"{export} has {rows} rows for a vocabulary of {vocabulary.size}")
    device = process_groups.join(config.parallel)
    try:
        replica = Replica(stop)
        spread = Spread(config, vocabulary, replica, Reader(model, rows, export, device))
        if dist.get_rank() == 0:
            copies = f"; {replica.copies} copies share the work" if replica.copies > 1 else ""
            print(f"megaphone: {export} is on {replica.size} ranks{copies}", flush=True)
        if replica.leads:
            spread.lead(inquiry, stop)
        else:
            spread.follow()
    finally:
        process_groups.leave()


@dataclass(frozen=True)
class _Read:
    """These samples are to be read."""

    readings: list[Reading]


@dataclass(frozen=True)
class _Wait:
    """Nothing is to be read for now."""


@dataclass(frozen=True)
class _End:
    """Nothing more is to be read. stopped: by the signal of this name."""

    stopped: str | None = None


class Spread:
    """The teacher on the ranks of a copy: an `Oracle` on the leader, whom the others `follow`."""

    def __init__(self, config: Config, vocabulary: Vocabulary, replica: Replica, reader: Reader) -> None:
        self._config = config
        self._vocabulary = vocabulary
        self._replica = replica
        self._reader = reader

    def lead(self, inquiry: Inquiry, stop: StopFlag) -> None:
        """Ask about all pieces. The followers end with it, unless it fails by a fault of its own: then whoever started
        the ranks ends them."""
        try:
            inquiry.ask(self, idle=lambda: self._replica.hear(_Wait()))
        except (BadInput, StoppedEarly):
            self._replica.hear(_End(stop.name))
            raise
        self._replica.hear(_End())

    def follow(self) -> None:
        """Read what the leader says, until it says that nothing is left."""
        while not isinstance(told := self._replica.hear(), _End):
            if isinstance(told, _Read):
                self._read(told.readings)
        if told.stopped:
            raise StoppedEarly(f"stopped by {told.stopped}; the same command goes on with what is left")

    def answer(self, questions: Sequence[Question], same: np.ndarray) -> list[Answers]:
        """As `Oracle.answer`."""
        readings = [Reading(question.ids, question.places) for question in questions]
        self._replica.hear(_Read(readings))
        found = self._read(readings)
        assert found is not None, "the leader is given what the last stage finds"
        return [
            answers_of(question, *likeliest, self._vocabulary, same)
            for question, likeliest in zip(questions, found, strict=True)
        ]

    def _read(self, readings: list[Reading]) -> list[Said] | None:
        """What the model says of each, on the leader."""
        parallel, options = self._config.parallel, self._config.generation
        interleaved = parallel.pipeline if parallel.virtual_pipeline else 1
        rows = lay(readings, self._vocabulary, self._config.train.sequence_length, interleaved)
        temperature, chunk = self._config.distillation.temperature, self._config.loss.chunk
        asked = [Asked(row.ranges, options.top_k, temperature, chunk) for row in rows]
        found = self._reader.read([row.batch for row in rows], asked)
        return self._replica.from_last(said(rows, found, readings) if found else None)
