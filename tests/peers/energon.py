"""megatron-energon on our shards, at the job of tests/peers/job.py: a shuffle buffer, its own packing stage."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from megatron.energon import (
    Cooker,
    Sample,
    TaskEncoder,
    WorkerConfig,
    basic_sample_keys,
    edataclass,
    get_loader,
    get_savable_loader,
    get_train_dataset,
    stateless,
)

from data_pipeline.vocabulary import Vocabulary
from tests.peers.job import ROWS, SHUFFLE, WINDOW, choose_rows, lay, row, run, vocabulary_of


@edataclass
class Spoken(Sample):
    described: dict
    codes: dict


@edataclass
class Laid(Sample):
    sample: Any


@edataclass
class Row(Sample):
    held: dict


@stateless
def cook(crude: dict) -> Spoken:
    codes = {name.removesuffix(".npy"): value for name, value in crude.items() if name.endswith(".npy")}
    return Spoken(**basic_sample_keys(crude), described=crude["json"], codes=codes)


class Whole(TaskEncoder):
    """Samples as they are, decoded."""

    cookers = [Cooker(cook)]

    def batch(self, samples: list) -> dict[str, Any]:
        return {"samples": len(samples)}

    def encode_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch


class Rows(TaskEncoder):
    """Rows of LENGTH tokens."""

    cookers = [Cooker(cook)]

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.vocabulary = vocabulary

    @stateless
    def encode_sample(self, spoken: Spoken) -> Laid:
        return Laid.derive_from(spoken, sample=lay(spoken.described, spoken.codes, self.vocabulary))

    def select_samples_to_pack(self, samples: list[Laid]) -> list[list[Laid]]:
        numbered = {id(laid.sample): laid for laid in samples}
        return [[numbered[id(sample)] for sample in held] for held in choose_rows([laid.sample for laid in samples])]

    @stateless
    def pack_selected_samples(self, samples: list[Laid]) -> Row:
        return Row.derive_from(samples[0], held=row([laid.sample for laid in samples]))

    def batch(self, rows: list[Row]) -> dict[str, Any]:
        tokens = np.stack([one.held["tokens"] for one in rows])
        counted = {name: sum(one.held[name] for one in rows) for name in ("samples", "real")}
        return {"tokens": tokens, **counted}

    def encode_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch


def dataset(folder: str, job: str, workers: int) -> Any:
    rows = job == "rows"
    return get_train_dataset(
        folder,
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=workers),
        batch_size=ROWS if rows else 6 * ROWS,
        packing_buffer_size=WINDOW if rows else None,
        shuffle_buffer_size=SHUFFLE,
        max_samples_per_sequence=100,
        task_encoder=Rows(vocabulary_of(folder)) if rows else Whole(),
    )


def read(folder: str, job: str, workers: int) -> Iterator[Mapping[str, Any]]:
    loader: Iterable[Mapping[str, Any]] = get_loader(dataset(folder, job, workers))
    while True:
        yield from loader


def savable(folder: str, job: str) -> Any:
    """A loader whose state can be taken and given back."""
    return get_savable_loader(dataset(folder, job, 0))


if __name__ == "__main__":
    run(sys.argv[1:], read)
