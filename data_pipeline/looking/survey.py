"""What a split holds: counted from its indexes alone, and from samples that are read where an index cannot tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_pipeline.corpus import Corpus
from data_pipeline.layouts.groups import check_codes
from data_pipeline.looking.histogram import Histogram
from data_pipeline.shards import LABELS, DamagedSample, ShardIndex, ShardReader, read_index
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput, StoppedEarly
from runtime.signals import StopFlag

NAMES_KEPT = 100_000  # of one label, such as speakers; more are counted without their names
READ = 2000  # samples of a split that are read unless told otherwise


@dataclass
class Tallied:
    """Samples and seconds by name of one label. `beyond` counts samples of names that came after NAMES_KEPT others."""

    samples: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    beyond: int = 0

    def add(self, names: np.ndarray, seconds: np.ndarray) -> None:
        found, which, counts = np.unique(names, return_inverse=True, return_counts=True)
        sums = np.bincount(which, seconds, minlength=len(found))
        for name, count, total in zip(found.tolist(), counts.tolist(), sums.tolist(), strict=True):
            if name in self.samples or len(self.samples) < NAMES_KEPT:
                self.samples[name] += count
                self.seconds[name] += total
            else:
                self.beyond += count


@dataclass
class Survey:
    """One split, from its indexes. `frames` by codebook; `histograms` of duration (s), characters a second and
    characters, and of each column that was measured; `labels` by field of an utterance."""

    shards: int = 0
    unreadable: list[str] = field(default_factory=list)  # shards whose index cannot be read
    samples: int = 0
    spoken: int = 0
    with_audio: int = 0
    documents: int = 0
    seconds: float = 0.0
    characters: int = 0
    frames: Counter[str] = field(default_factory=Counter)
    audio_bytes: int = 0
    shard_bytes: Histogram = field(default_factory=Histogram)
    shard_samples: Histogram = field(default_factory=Histogram)
    histograms: dict[str, Histogram] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)
    labels: dict[str, Tallied] = field(default_factory=dict)

    def add(self, index: ShardIndex, shard_bytes: int) -> None:
        """Count a shard."""
        spoken = index.spoken | (index.duration > 0)
        self.shards += 1
        self.samples += len(index)
        self.spoken += int(spoken.sum())
        self.with_audio += int((index.audio_size > 0).sum())
        self.documents += len(index.documents)
        self.seconds += float(index.duration.sum())
        self.characters += int(index.characters.sum())
        self.audio_bytes += int(index.audio_size.sum())
        for name, count in index.frames.items():
            self.frames[name] += int(count.sum())
        self.shard_bytes.add(np.array([shard_bytes]))
        self.shard_samples.add(np.array([len(index)]))
        timed = index.duration > 0
        self._histogram("duration").add(index.duration[timed])
        worded = timed & (index.characters > 0)
        self._histogram("characters_per_second").add(index.characters[worded] / index.duration[worded])
        self._histogram("characters").add(index.characters)
        for name, values in sorted(index.columns.items()):
            if name not in self.columns:
                self.columns.append(name)
            self._histogram(f"column/{name}").add(values)
        for label in LABELS:
            if label in index.labels:
                self.labels.setdefault(label, Tallied()).add(index.labels[label], index.duration)

    def _histogram(self, name: str) -> Histogram:
        return self.histograms.setdefault(name, Histogram())


def survey(corpus: Corpus, split: str, stop: StopFlag | None = None) -> Survey:
    """Count a split, one index in memory at a time. Raises StoppedEarly on a stop request."""
    told = Survey()
    for shard, entry in zip(corpus.shards(split), corpus.splits[split], strict=True):
        if stop:
            raise StoppedEarly("stopped while the indexes were read")
        try:
            told.add(read_index(shard), entry["bytes"])
        except DamagedSample:
            told.unreadable.append(shard.relative_to(corpus.folder).as_posix())
    return told


# --- samples that are read --------------------------------------------------------------------------------------


@dataclass
class Usage:
    """How often each code of a codebook was seen: int64 [rows, size]."""

    counts: np.ndarray

    @property
    def used(self) -> float:
        """Share of the entries that were seen, over all rows."""
        return float((self.counts > 0).mean())

    @property
    def perplexity(self) -> list[float]:
        """exp(-sum p ln p) of each row: how many codes, were they used evenly, would be as surprising."""
        return [float(np.exp(entropy(row))) for row in self.counts]


@dataclass
class Readings:
    """What was seen in `read` samples, spread evenly over the split; `damaged` others could not be read.

    `text_tokens` are of the samples' `characters`; `timed` samples have word times; `licences` count them;
    `features` maps an encoder to its widths and frames."""

    read: int = 0
    damaged: Counter[str] = field(default_factory=Counter)
    text_tokens: int = 0
    characters: int = 0
    timed: int = 0
    spoken: int = 0
    licences: Tallied = field(default_factory=Tallied)
    usage: dict[str, Usage] = field(default_factory=dict)
    feature_frames: Counter[str] = field(default_factory=Counter)
    feature_widths: dict[str, int] = field(default_factory=dict)

    def add(self, utterance: Utterance, vocabulary: Vocabulary) -> None:
        """Count a sample whose codes fit `vocabulary`."""
        self.read += 1
        self.text_tokens += len(vocabulary.encode_text(utterance.text))
        self.characters += len(utterance.text)
        self.timed += bool(utterance.words)
        self.spoken += utterance.spoken or utterance.duration > 0
        self.licences.add(np.array([utterance.licence]), np.array([utterance.duration]))
        for book in vocabulary.codebooks if utterance.spoken else ():
            for row, codes in enumerate(utterance.codes[book.name]):
                self.usage[book.name].counts[row] += np.bincount(codes, minlength=book.size)
        for name, rows in utterance.features.items():
            self.feature_frames[name] += len(rows)
            self.feature_widths[name] = rows.shape[1]


def read_samples(corpus: Corpus, split: str, most: int | None = READ, stop: StopFlag | None = None) -> Readings:
    """Read at most `most` samples (None: all), evenly spread. Raises StoppedEarly on a stop request."""
    books = corpus.vocabulary.codebooks
    told = Readings(usage={book.name: Usage(np.zeros((book.rows, book.size), np.int64)) for book in books})
    for shard, ordinals in spread_samples(corpus, split, most):
        try:
            with ShardReader(shard) as reader:
                for ordinal in ordinals:
                    if stop:
                        raise StoppedEarly("stopped while samples were read")
                    _read_one(reader, ordinal, corpus.vocabulary, told)
        except DamagedSample as damaged:
            told.damaged[damaged.kind] += len(ordinals)
    return told


def spread_samples(corpus: Corpus, split: str, most: int | None) -> Iterator[tuple[Path, list[int]]]:
    """Shards with the ordinals of at most `most` samples of theirs, evenly over the split as its manifest tells it."""
    counts = np.array([entry["samples"] for entry in corpus.splits[split]], np.int64)
    total = int(counts.sum())
    wanted = total if most is None else min(most, total)
    if not wanted:
        return
    ends = np.cumsum(counts)
    places = np.arange(wanted) * total // wanted
    owners = np.searchsorted(ends, places, side="right")
    shards = corpus.shards(split)
    for owner in np.unique(owners).tolist():
        yield shards[owner], (places[owners == owner] - (ends[owner] - counts[owner])).tolist()


def _read_one(reader: ShardReader, ordinal: int, vocabulary: Vocabulary, told: Readings) -> None:
    try:
        if ordinal >= len(reader):
            raise DamagedSample("index", f"{reader.path} sample {ordinal}")
        utterance = reader.read(ordinal)
        check_codes(utterance, vocabulary)
    except DamagedSample as damaged:
        told.damaged[damaged.kind] += 1
    except BadInput:
        told.damaged["codes"] += 1
    else:
        told.add(utterance, vocabulary)


def entropy(counts: np.ndarray) -> float:
    """-sum p ln p of p = counts / sum(counts), 0 where nothing was counted."""
    if not counts.sum():
        return 0.0
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())
