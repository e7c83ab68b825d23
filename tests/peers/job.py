"""The job that every library is timed at: utterances of a corpus laid out by the same code, in full rows of tokens.

A library that can pack gets `best_fit`; one that can't pads each batch to its longest sample, as its documentation
does.
"""

from __future__ import annotations

import json
import math
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from data_pipeline.batch import Sample
from data_pipeline.corpus import Corpus
from data_pipeline.layouts import find_layout
from data_pipeline.packing import best_fit
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary

LENGTH = 2048  # tokens of a row
ROWS = 8  # rows of a batch, or as many tokens of samples
WINDOW = 400  # samples that a packing library chooses from; ours fills 16 rows at a time, which is about as many
SHUFFLE = 4096  # samples that are shuffled together
_RNG = np.random.default_rng(0)
_TTS = find_layout("tts", {})


def lay(described: Mapping[str, Any], codes: dict[str, np.ndarray], vocabulary: Vocabulary) -> Sample:
    """The `tts` sample of one utterance, as the loader lays it. All get the ids of its text with it."""
    vocabulary.know({described["text"]: described["ids"]})
    stored = {name: described[name] for name in ("key", "text", "document", "duration")}
    (sample,) = _TTS([Utterance(**stored, codes=codes)], vocabulary, _RNG)
    return sample


def choose_rows(samples: list[Sample]) -> list[list[Sample]]:
    return [[samples[i] for i in members] for members in best_fit([len(sample) for sample in samples], LENGTH)]


def padded(samples: list[Sample]) -> dict[str, Any]:
    """A batch of whole samples, each padded to the longest: arrays [samples, longest]."""
    longest = max(len(sample) for sample in samples)
    tokens = np.zeros((len(samples), longest), np.int64)
    weight = np.zeros((len(samples), longest), np.float32)
    for row, sample in enumerate(samples):
        tokens[row, : len(sample)] = sample.tokens
        weight[row, : len(sample)] = sample.loss_weight
    return {"tokens": tokens, "weight": weight, "samples": len(samples), "real": sum(len(sample) for sample in samples)}


def row(samples: list[Sample]) -> dict[str, Any]:
    """One row of LENGTH tokens that holds whole samples."""
    tokens, weight = np.zeros(LENGTH, np.int64), np.zeros(LENGTH, np.float32)
    at = 0
    for sample in samples:
        tokens[at : at + len(sample)], weight[at : at + len(sample)] = sample.tokens, sample.loss_weight
        at += len(sample)
    return {"tokens": tokens, "weight": weight, "samples": len(samples), "real": at}


def measure(batches: Iterable[Mapping[str, Any]], opened: float, wanted: int) -> None:
    """Print what reading at least `wanted` samples took, the first batch left out (it starts processes and buffers).

    `opened`: when the library began to open the corpus. A batch says its `samples`, and where it has any its `real`
    tokens and `tokens`.
    """
    stream: Iterator[Mapping[str, Any]] = iter(batches)
    next(stream)
    first = time.perf_counter()
    samples = real = laid = 0
    while samples < wanted:
        batch = next(stream)
        samples += batch["samples"]
        real += batch.get("real", 0)
        laid += math.prod(batch["tokens"].shape) if "tokens" in batch else 0
    seconds = time.perf_counter() - first
    own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(
        json.dumps(
            {
                "samples_a_second": samples / seconds,
                "tokens_a_second": real / seconds,
                "padding": 1 - real / laid if laid else None,
                "to_first_batch": first - opened,
                "peak_megabytes": max(own, children) / 1024,
            }
        )
    )


def run(arguments: list[str], reader: Callable[[str, str, int], Iterable[Mapping[str, Any]]]) -> None:
    """Time `reader(folder, job, workers)`; arguments: folder, "read" or "rows", workers, samples."""
    folder, job, workers, wanted = arguments
    opened = time.perf_counter()
    measure(reader(folder, job, int(workers)), opened, int(wanted))


def vocabulary_of(folder: str) -> Vocabulary:
    from pathlib import Path

    return Corpus.open(Path(folder)).vocabulary
