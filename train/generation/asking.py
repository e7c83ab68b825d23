"""Asking a teacher: at every place of a mixture's samples that a student is asked about, its likeliest tokens.

The teacher is an export, whatever topology it was trained on, and it reads each sample as its student will. Its
vocabulary may be another: then samples are laid in both, and answers carried over by the names of tokens and codebooks,
at places that ask for the same token. Where the two write text differently, these are the audio's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from configs.schema import Config
from data_pipeline.answers import Answers, answers_file, checksum, write_answers
from data_pipeline.batch import Sample
from data_pipeline.corpus import SPLITS, Corpus
from data_pipeline.damage import DamageTally
from data_pipeline.exported_model import load_exported
from data_pipeline.layouts import layouts_of
from data_pipeline.layouts.groups import group_length
from data_pipeline.mixture import Source, open_mixture
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput, StoppedEarly
from runtime.signals import StopFlag
from train.generation.matching import same_ids
from train.generation.sharing import share_out


class Question(NamedTuple):
    """A student's sample, and what the teacher reads for it: ids, int64 [T]; its places that are asked about, int64
    [n], and those of the student that they stand for."""

    sample: Sample
    ids: np.ndarray
    places: np.ndarray
    student_places: np.ndarray


class Oracle(Protocol):
    """A teacher, asked for its `top_k` likeliest tokens of the table that is due (`Vocabulary.tables`) at a
    temperature."""

    def answer(self, questions: Sequence[Question], same: np.ndarray) -> list[Answers]:
        """Answers at each question's student's places, in the student's ids `same[teacher's id]`; a likely token that
        the student lacks counts among all others. Questions are read together."""


@dataclass(frozen=True)
class OneDevice:
    """The teacher as a causal language model of `transformers`, with its vocabulary."""

    model: Any
    vocabulary: Vocabulary
    top_k: int
    temperature: float

    @classmethod
    def load(cls, config: Config, export: Path) -> OneDevice:
        """Raises BadInput where the export is none."""
        options, vocabulary = config.generation, Vocabulary.load(export)
        model = load_exported(export, str(export), vocabulary.size, device=options.device, bf16=options.bf16)
        return cls(model, vocabulary, options.top_k, config.distillation.temperature)

    def answer(self, questions: Sequence[Question], same: np.ndarray) -> list[Answers]:
        """As `Oracle.answer`."""
        ids = torch.zeros(len(questions), max(len(question.ids) for question in questions), dtype=torch.long)
        for row, question in enumerate(questions):
            ids[row, : len(question.ids)] = torch.from_numpy(
                question.ids
            )  # padded behind, where nobody looks back from
        kept = np.unique(np.concatenate([question.places for question in questions]))
        with torch.inference_mode():
            logits = self.model(
                input_ids=ids.to(self.model.device),
                logits_to_keep=torch.from_numpy(kept).to(self.model.device),
                use_cache=False,
            ).logits
        return [
            self._likeliest(logits[row, torch.from_numpy(np.searchsorted(kept, question.places))], question, same)
            for row, question in enumerate(questions)
        ]

    def _likeliest(self, logits: torch.Tensor, question: Question, same: np.ndarray) -> Answers:
        """Of logits [n, rows] at a question's places."""
        table = tables_due(question, self.vocabulary)
        ids = np.full((len(table), self.top_k), -1, np.int64)
        log_chances = np.full((len(table), self.top_k), -np.inf, np.float32)
        for number in np.unique(table):
            rows, due = np.flatnonzero(table == number), self.vocabulary.tables[number]
            held = logits[torch.from_numpy(rows), due.start : due.stop].float() / self.temperature
            likeliest = held.log_softmax(1).topk(min(self.top_k, len(due)))
            wide = likeliest.values.shape[1]
            ids[rows, :wide] = likeliest.indices.cpu().numpy() + due.start
            log_chances[rows, :wide] = likeliest.values.cpu().numpy()
        return answers_of(question, ids, log_chances, self.vocabulary, same)


def tables_due(question: Question, vocabulary: Vocabulary) -> np.ndarray:
    """The number of the table that is due at each of the teacher's places, int64 [n]."""
    return vocabulary.table_of(question.ids[question.places + 1])


def answers_of(
    question: Question, ids: np.ndarray, log_chances: np.ndarray, vocabulary: Vocabulary, same: np.ndarray
) -> Answers:
    """What is kept of the likeliest tokens: the teacher's ids [n, k], -1 where a table has fewer, and float32 [n, k];
    `vocabulary` is the teacher's, `same` as in `Oracle.answer`."""
    table = tables_due(question, vocabulary)
    ids = np.where(ids >= 0, same[ids], -1)
    log_chances = np.where(ids >= 0, log_chances, -np.inf)
    rest = np.clip(1 - np.exp(log_chances.astype(np.float64)).sum(1), 0, 1)
    covered = np.array([len(due) for due in vocabulary.tables])[table] <= (ids >= 0).sum(1)
    return Answers(
        places=question.student_places.astype(np.int32),
        ids=ids,
        log_chances=log_chances.astype(np.float16),
        rest=np.where(covered, 0, rest).astype(np.float16),
    )


class Inquiry:
    """One process's part in asking a teacher, that has the vocabulary `theirs`, about all samples of the mixture's
    sources in a corpus, at `folder`."""

    def __init__(self, config: Config, corpus: Corpus, theirs: Vocabulary, folder: Path, stop: StopFlag) -> None:
        """Raises BadInput where the two vocabularies, or a layout, cannot be asked about."""
        self._config = config
        self._vocabulary = corpus.vocabulary
        self._theirs = theirs
        self._folder = folder
        self._stop = stop
        self._same = same_ids(theirs, corpus.vocabulary)
        if group_length(theirs) != group_length(corpus.vocabulary):
            raise BadInput("the teacher's groups of codes are not the student's")
        for name, layout in layouts_of(config.mixture.sources).items():
            if not layout.plain or layout.hears is not None:
                raise BadInput(f"source {name}: layout {layout.name} is not of tokens alone, all that a teacher reads")
        self._asked = {split: self._sources(corpus, split) for split in SPLITS if corpus.splits[split]}

    def _sources(self, corpus: Corpus, split: str) -> dict[str, Source]:
        damage = DamageTally(self._config.loader.damaged_share)
        return {source.name: source for source in open_mixture(self._config, corpus, split, damage).sources}

    @cached_property
    def pieces(self) -> dict[str, tuple[Source, str]]:
        """Source and shard of each piece of work, by the name of its file."""
        return {
            answers_file(Path(), source.name, shard).as_posix(): (source, shard)
            for sources in self._asked.values()
            for source in sources.values()
            for shard in source.documents.files
        }

    def described(self) -> dict[str, Any]:
        """Of what the answers are, for their manifest."""
        return {
            "temperature": self._config.distillation.temperature,
            "top_k": self._config.generation.top_k,
            "vocabulary": self._vocabulary.describe(),
            "sources": {name: source.asked() for sources in self._asked.values() for name, source in sources.items()},
        }

    def ask(self, oracle: Oracle, idle: Callable[[], None] = lambda: None) -> None:
        """Return when all pieces are there, those that other processes make too; `idle`: as in `share_out`. Raises
        StoppedEarly, with nothing left of the piece that was begun."""
        share_out(self._folder, list(self.pieces), self._is_done, partial(self._write, oracle), self._stop, idle)

    def _is_done(self, piece: str) -> bool:
        return (self._folder / piece).is_file()

    def _write(self, oracle: Oracle, piece: str) -> None:
        source, shard = self.pieces[piece]
        found: dict[str, tuple[int, Answers]] = {}
        waiting = self._questions(source, shard)
        while questions := list(islice(waiting, self._config.generation.batch)):
            if self._stop:
                raise StoppedEarly(f"stopped by {self._stop.name}; the same command goes on with this shard")
            for question, answers in zip(questions, oracle.answer(questions, self._same), strict=True):
                found[question.sample.key] = checksum(question.sample), answers
        write_answers(self._folder / piece, found, self._vocabulary, self._config.generation.top_k)
        places = sum(len(answers.places) for _, answers in found.values())
        print(f"megaphone: {piece}: {len(found)} samples, {places} places", flush=True)

    def _questions(self, source: Source, shard: str) -> Iterator[Question]:
        other = self._theirs != self._vocabulary
        for number in source.documents.numbers_in(shard):
            laid = source.laid(number, 0, self._config.train.sequence_length)
            theirs = self._in_other_words(source, number) if other else {}
            for sample in laid:
                question = carried(sample, theirs.get(sample.key), self._same) if other else plain(sample)
                if question is not None and len(question.places):
                    yield question

    def _in_other_words(self, source: Source, number: int) -> dict[str, Sample]:
        """A document's samples in the teacher's vocabulary."""
        utterances = source.documents.read(number)
        laid = source.layout(utterances, self._theirs, source.draws(number, 0)) if utterances else []
        return {sample.key: sample for sample in laid}


def plain(sample: Sample) -> Question:
    """For a teacher with the student's vocabulary."""
    places = np.flatnonzero(sample.loss_weight[1:] > 0)
    return Question(sample, sample.tokens, places, places)


def carried(sample: Sample, theirs: Sample | None, same: np.ndarray) -> Question | None:
    """For a teacher with another: `theirs` is the sample in its vocabulary. All places that are asked about, where they
    ask for the same tokens in both; else those of audio; None where these differ too, as in a sample that was cut."""
    if theirs is None:
        return None
    own, other = (np.flatnonzero(one.loss_weight[1:] > 0) for one in (sample, theirs))
    for audio_alone in (False, True):
        if audio_alone:
            own, other = own[sample.modality[own + 1] > 0], other[theirs.modality[other + 1] > 0]
        if len(own) == len(other) and np.array_equal(sample.tokens[own + 1], same[theirs.tokens[other + 1]]):
            return Question(sample, theirs.tokens, other, own)
    return None
