"""Our loader, at the job of tests/peers/job.py."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from configs.schema import Config, LoaderConfig, MixtureConfig, SourceConfig, TrainConfig
from data_pipeline.corpus import Corpus
from data_pipeline.damage import DamageTally
from data_pipeline.documents import Documents
from data_pipeline.loader import make_loader
from data_pipeline.order import Cursor, Order
from tests.peers.job import LENGTH, ROWS, SHUFFLE, run


def config(workers: int) -> Config:
    return Config(
        mixture=MixtureConfig("tts", {"tts": SourceConfig(layout="tts", weight=1.0)}),
        loader=LoaderConfig(lanes=8, shuffle_documents=SHUFFLE // 8, workers=workers, prefetch=16 if workers else 0),
        train=TrainConfig(sequence_length=LENGTH, global_batch=ROWS),
    )


def read(folder: str, job: str, workers: int) -> Iterable[Mapping[str, Any]]:
    corpus = Corpus.open(Path(folder))
    if job == "rows":
        loader = make_loader(config(workers), corpus, split="train", rank=0, world=1)
        while True:
            packs = loader.next_step()
            yield {
                "tokens": np.stack([pack.tokens for pack in packs]),
                "samples": sum(len(pack.keys) for pack in packs),
                "real": sum(LENGTH - pack.padding for pack in packs),
            }
    documents = Documents(corpus, "train", DamageTally(0.0), spoken=True)
    order = Order(documents.counts, seed=0, block=SHUFFLE)
    place = 0
    while True:
        epoch, place_in_epoch = divmod(place, len(documents))
        yield {"samples": len(documents.read(order.document(Cursor(epoch, place_in_epoch), 0, 1)))}
        place += 1


if __name__ == "__main__":
    run(sys.argv[1:], read)
