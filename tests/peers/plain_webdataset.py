"""webdataset on our shards, at the job of tests/peers/job.py: shards and a buffer shuffled, batches padded."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import webdataset

from tests.peers.job import ROWS, SHUFFLE, lay, padded, run, vocabulary_of


def decoded(sample: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    codes = {
        name.removesuffix(".npy"): np.load(io.BytesIO(content), allow_pickle=False)
        for name, content in sample.items()
        if name.endswith(".npy")
    }
    return json.loads(sample["json"]), codes


def read(folder: str, job: str, workers: int) -> Iterable[Mapping[str, Any]]:
    shards = sorted(str(shard) for shard in Path(folder, "train").glob("*.tar"))
    dataset = webdataset.WebDataset(
        shards, shardshuffle=len(shards), resampled=True, nodesplitter=webdataset.split_by_node
    ).shuffle(SHUFFLE)
    if job == "read":
        return ({"samples": 1} for _ in dataset.map(decoded))
    vocabulary = vocabulary_of(folder)
    batches = dataset.map(lambda sample: lay(*decoded(sample), vocabulary)).batched(ROWS * 6, collation_fn=padded)
    return endless(webdataset.WebLoader(batches, batch_size=None, num_workers=workers))


def endless(batches: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from batches


if __name__ == "__main__":
    run(sys.argv[1:], read)
