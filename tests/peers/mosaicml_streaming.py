"""mosaicml-streaming on its MDS format, at the job of tests/peers/job.py: its shuffle, batches padded.

The package imports torchvision for its picture data sets, which this job has not and a CPU build of torch refuses; an
empty module stands in for it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from data_pipeline.corpus import Corpus
from data_pipeline.shards import ShardReader
from tests.peers.job import ROWS, lay, padded, run, vocabulary_of

for _name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchvision.datasets"):
    sys.modules[_name] = ModuleType(_name)
    sys.modules[_name].__spec__ = ModuleSpec(_name, None)
sys.modules["torchvision.transforms.functional"].to_tensor = None  # type: ignore[attr-defined]
sys.modules["torchvision.datasets"].VisionDataset = object  # type: ignore[attr-defined]

from streaming import MDSWriter, StreamingDataset  # noqa: E402

BOOKS = ("linguistic", "semantic")


def write(folder: str, target: str) -> None:
    """The train split of a corpus as MDS, without compression."""
    corpus = Corpus.open(Path(folder))
    columns = {"json": "json", **dict.fromkeys(BOOKS, "ndarray")}
    with MDSWriter(out=target, columns=columns) as writer:
        for shard in corpus.shards("train"):
            with ShardReader(shard) as reader:
                for number in range(len(reader)):
                    utterance = reader.read(number)
                    words = [[word.text, word.start, word.end] for word in utterance.words]
                    stored = {name: getattr(utterance, name) for name in ("key", "text", "document", "duration", "ids")}
                    codes = {name: np.array(utterance.codes[name]) for name in BOOKS}
                    writer.write({"json": stored | {"words": words}, **codes})


def read(folder: str, job: str, workers: int) -> Iterator[Mapping[str, Any]]:
    rows = ROWS * 6 if job == "rows" else 1
    mds = str(Path(folder).with_name("mds"))
    dataset = StreamingDataset(local=mds, shuffle=True, batch_size=rows, replication=None)
    if job == "read":
        while True:
            for _ in dataset:
                yield {"samples": 1}
    vocabulary = vocabulary_of(folder)

    def together(samples: list[dict[str, Any]]) -> dict[str, Any]:
        return padded([lay(one["json"], {name: one[name] for name in BOOKS}, vocabulary) for one in samples])

    while True:
        yield from torch.utils.data.DataLoader(dataset, batch_size=rows, num_workers=workers, collate_fn=together)


if __name__ == "__main__":
    run(sys.argv[1:], read)
