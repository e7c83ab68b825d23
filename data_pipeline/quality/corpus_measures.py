"""Measures of a corpus that exists: columns beside the indexes of its shards, no tar written again.

Every shard is a task: one that has the columns of a measure is not measured for it again, so that an interrupted run
goes on where it was.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from configs.checks.quality import CORPUS_MEASURES, MEASURES
from configs.schema import QualityConfig
from data_pipeline.audio import decode_flac
from data_pipeline.corpus import SPLITS, Corpus
from data_pipeline.quality.duplicates import find_duplicates
from data_pipeline.quality.measure import Measure
from data_pipeline.quality.registry import open_measures
from data_pipeline.quality.speaker_similarity import add_speaker_similarity
from data_pipeline.shards import DamagedSample, ShardReader, add_columns, read_index
from runtime.exits import BadInput
from runtime.progress import Progress
from runtime.signals import StopFlag
from runtime.workers import Task, Workers, report_done


@dataclass(frozen=True)
class Measured:
    """`shards` that were measured now, `skipped` that had it all, and what was damaged and has no values."""

    shards: int
    skipped: int
    damaged: tuple[str, ...]


def measure_corpus(
    corpus: Corpus,
    config: QualityConfig,
    names: Sequence[str],
    *,
    again: bool = False,
    workers: int | None = None,
    stop: StopFlag | None = None,
) -> Measured:
    """Add the columns of the measures `names`, of single utterances and of the whole corpus, to the shards of `corpus`.

    `config` says with which weights. `again`: also where the columns are there. `workers`: processes; None: one a core.
    Raises BadInput for a measure or weights that are not there, and StoppedEarly; shards that were finished by then
    keep their columns.
    """
    for name in names:
        if name not in MEASURES and name not in CORPUS_MEASURES:
            raise BadInput(f"no measure {name}; there are {', '.join((*MEASURES, *CORPUS_MEASURES))}")
    processes = workers or len(os.sched_getaffinity(0))
    corpus.require_local("measuring")
    shards = [shard for split in SPLITS for shard in corpus.shards(split)]
    held = {shard: _columns(shard) for shard in shards}
    config = replace(config, measures=[name for name in dict.fromkeys(names) if name in MEASURES])
    missing = {
        shard: [name for name in config.measures if again or not set(MEASURES[name]) <= held[shard]] for shard in shards
    }
    todo = {shard: wanted for shard, wanted in missing.items() if wanted}
    damaged: list[str] = []
    if todo:
        seconds = sum(entry["duration"] for split in SPLITS for entry in corpus.splits[split]) * len(todo) / len(shards)
        tasks: list[Task] = [
            (measure_shard, (shard, replace(config, measures=wanted))) for shard, wanted in todo.items()
        ]
        with Workers(processes) as pool:
            for found in pool.run("measures", tasks, seconds, Progress(f"corpus {corpus.name}"), stop):
                damaged += found
    for name in dict.fromkeys(names):
        if name in CORPUS_MEASURES and (
            again or any(not set(CORPUS_MEASURES[name]) <= held[shard] for shard in shards)
        ):
            if name == "duplicates":
                find_duplicates(corpus, processes, stop)
            else:
                add_speaker_similarity(corpus, config.speaker, processes, stop)
    return Measured(len(todo), len(shards) - len(todo), tuple(damaged))


def _columns(shard: Path) -> set[str]:
    try:
        return set(read_index(shard).columns)
    except DamagedSample:
        return set()  # the shard's own task says so


@lru_cache(4)
def _opened(names: tuple[str, ...], recogniser: str, dnsmos: str, speaker: str) -> list[Measure]:
    """Opened once a process."""
    return open_measures(QualityConfig(list(names), recogniser, dnsmos, speaker))


def measure_shard(shard: Path, config: QualityConfig) -> list[str]:
    """Measure each utterance of `shard` by `config.measures` and add the columns; reports seconds of sound. Returns
    what was damaged: such utterances have no values."""
    import torch

    torch.set_num_threads(1)
    measures = _opened(tuple(config.measures), config.recogniser, config.dnsmos, config.speaker)
    damaged: list[str] = []
    try:
        reader = ShardReader(shard)
    except DamagedSample as error:
        return [str(error)]
    with reader:
        columns = {name: np.full(len(reader), np.nan, np.float32) for measure in measures for name in measure.columns}
        for sample in range(len(reader)):
            try:
                utterance, flac = reader.read(sample), reader.read_audio(sample)
                wave = np.zeros(0, np.float32) if flac is None else decode_flac(flac)
            except (DamagedSample, BadInput) as error:
                damaged.append(str(error))
                continue
            for measure in measures:
                for name, value in measure.measure(wave, utterance).items():
                    columns[name][sample] = value
            report_done(utterance.duration)
    add_columns(shard, columns)
    return damaged
