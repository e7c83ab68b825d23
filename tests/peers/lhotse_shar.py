"""lhotse on its Shar format, at the job of tests/peers/job.py: dynamic buckets by duration, batches padded."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lhotse import CutSet, MonoCut, SupervisionSegment
from lhotse.dataset import DynamicBucketingSampler, IterableDatasetWrapper
from lhotse.shar import SharWriter

from data_pipeline.corpus import Corpus
from data_pipeline.shards import ShardReader
from data_pipeline.vocabulary import Vocabulary
from tests.peers.job import LENGTH, ROWS, SHUFFLE, lay, padded, run, vocabulary_of

BOOKS = ("linguistic", "semantic")
BUCKETS = 30
TOKENS_A_SECOND = 50  # about, of text and codes


def write(folder: str, target: str) -> None:
    """The train split of a corpus as Shar: shards of 1,000 cuts, codes as arrays."""
    corpus = Corpus.open(Path(folder))
    Path(target).mkdir()
    with SharWriter(target, fields=dict.fromkeys(BOOKS, "numpy"), shard_size=1000) as writer:
        for shard in corpus.shards("train"):
            with ShardReader(shard) as reader:
                for number in range(len(reader)):
                    utterance = reader.read(number)
                    speech = SupervisionSegment(
                        id=utterance.key,
                        recording_id=utterance.key,
                        start=0,
                        duration=utterance.duration,
                        text=utterance.text,
                        speaker=utterance.speaker,
                    )
                    cut = MonoCut(utterance.key, 0, utterance.duration, 0, supervisions=[speech])
                    cut.document, cut.ids = utterance.document, list(utterance.ids)
                    for name in BOOKS:
                        cut = cut.attach_tensor(name, np.array(utterance.codes[name]))
                    writer.write(cut)


def described(cut: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    text = cut.supervisions[0].text
    stored = {"key": cut.id, "text": text, "document": cut.document, "duration": cut.duration, "ids": cut.ids}
    return stored, {name: getattr(cut, f"load_{name}")() for name in BOOKS}


class Batches(torch.utils.data.Dataset):
    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary

    def __getitem__(self, cuts: CutSet) -> dict[str, Any]:
        return padded([lay(*described(cut), self.vocabulary) for cut in cuts])


def cuts_of(folder: str, *, workers: int) -> CutSet:
    return CutSet.from_shar(in_dir=folder, shuffle_shards=True, split_for_dataloading=workers > 1).repeat()


def sampler(folder: str, workers: int) -> DynamicBucketingSampler:
    return DynamicBucketingSampler(
        cuts_of(folder, workers=workers),
        max_duration=LENGTH * ROWS / TOKENS_A_SECOND,
        num_buckets=BUCKETS,
        buffer_size=SHUFFLE,
        shuffle=True,
        drop_last=False,
        rank=0,
        world_size=1,
    )


def read(folder: str, job: str, workers: int) -> Iterator[Mapping[str, Any]]:
    shar = str(Path(folder).with_name("shar"))
    if job == "read":
        for cut in cuts_of(shar, workers=0):
            described(cut)
            yield {"samples": 1}
        return
    batches = IterableDatasetWrapper(Batches(vocabulary_of(folder)), sampler(shar, workers))
    while True:
        yield from torch.utils.data.DataLoader(batches, batch_size=None, num_workers=workers)


if __name__ == "__main__":
    run(sys.argv[1:], read)
