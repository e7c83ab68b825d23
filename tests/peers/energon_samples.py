"""Prints each sample of a prepared corpus, of both its splits, as megatron-energon reads it: JSON, one a line."""

from __future__ import annotations

import json
import sys

from megatron.energon import Cooker, TaskEncoder, WorkerConfig, get_loader, get_train_dataset

from tests.peers.energon import cook


class Whole(TaskEncoder):
    cookers = [Cooker(cook)]

    def batch(self, samples: list) -> list:
        return samples

    def encode_batch(self, batch: list) -> list:
        return batch


def main(corpus: str) -> None:
    for split in ("train", "val"):
        dataset = get_train_dataset(
            corpus,
            split_part=split,
            worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
            batch_size=1,
            shuffle_buffer_size=None,
            max_samples_per_sequence=None,
            task_encoder=Whole(),
            repeat=False,
        )
        for batch in get_loader(dataset):
            for sample in batch:
                codes = {name: array.tolist() for name, array in sample.codes.items()}
                described = {"split": split, "key": sample.__key__, "described": sample.described, "codes": codes}
                print(json.dumps(described))


if __name__ == "__main__":
    main(sys.argv[1])
