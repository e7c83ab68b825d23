"""What it takes a library to go on in the middle of an epoch of many samples: from opening to the first batch.

Prints seconds and the memory that the process grew by. Imports are done before.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path


def grown(work: Callable[[], object]) -> None:
    before = _resident()
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "megabytes": _resident("VmHWM") - before}))


def _resident(which: str = "VmRSS") -> float:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which)]
    return int(line.split()[1]) / 1024


def enlarged(folder: str, samples: int) -> Path:
    """A corpus that lists one shard of 1,000 utterances under as many names as it takes."""
    from data_pipeline.shards import index_path

    target = Path(folder).with_name(f"corpus-{samples}")
    if target.exists():
        return target
    (target / "train").mkdir(parents=True)
    manifest = json.loads(Path(folder, "manifest.json").read_text())
    entry = manifest["splits"]["train"][0]
    shard = Path(folder, entry["file"])
    names = [f"train/shard-{number:06d}.tar" for number in range(samples // entry["samples"])]
    for name in names:
        os.link(shard, target / name)
        os.link(index_path(shard), index_path(target / name))
    manifest["splits"] = {"train": [entry | {"file": name} for name in names], "valid": []}
    (target / "manifest.json").write_text(json.dumps(manifest))
    for name in ("vocabulary.json", "tokenizer.json"):
        os.link(Path(folder, name), target / name)
    return target


def ours(folder: str, samples: int) -> None:
    """Half of the corpus read."""
    from data_pipeline.corpus import Corpus
    from data_pipeline.loader import make_loader
    from tests.peers.ours import config

    target = enlarged(folder, samples)
    settings = config(0)
    corpus = Corpus.open(target)
    fresh = make_loader(settings, corpus, split="train", rank=0, world=1)
    state = json.loads(json.dumps(fresh.state_dict()))
    documents = sum(entry["spoken_documents"] for entry in corpus.splits["train"])
    for lane in state["lanes"].values():
        lane["sources"]["tts"][1] = documents // settings.loader.lanes // 2

    def resume() -> None:
        loader = make_loader(settings, Corpus.open(target), split="train", rank=0, world=1)
        loader.load_state_dict(state)
        loader.next_step()

    grown(resume)


def lhotse(folder: str, samples: int) -> None:
    """Cuts without sound in one JSON lines file, the sampler's state after half of them."""
    from lhotse import CutSet, MonoCut, SupervisionSegment
    from lhotse.dataset import DynamicBucketingSampler

    file = Path(folder).with_name(f"cuts-{samples}.jsonl")
    if not file.exists():
        with CutSet.open_writer(file) as writer:
            for number in range(samples):
                key, duration = f"u{number:09d}", 5 + number * 7919 % 9000 / 1000
                writer.write(MonoCut(key, 0, duration, 0, supervisions=[SupervisionSegment(key, key, 0, duration)]))

    def sampler() -> DynamicBucketingSampler:
        cuts = CutSet.from_jsonl_lazy(file)
        return DynamicBucketingSampler(
            cuts, max_duration=320, num_buckets=30, buffer_size=4096, shuffle=True, rank=0, world_size=1
        )

    half = sampler()
    seen = 0
    for batch in half:
        seen += len(batch)
        if seen >= samples // 2:
            break
    state = half.state_dict()

    def resume() -> None:
        again = sampler()
        again.load_state_dict(state)
        next(iter(again))

    grown(resume)


def energon(folder: str, samples: int) -> None:
    """Our shards, prepared; the loader's state after half of them. It refuses a key that comes twice, as all do where
    one shard stands for many, so its corpus is a real one."""
    from tests import peers
    from tests.peers import corpora
    from tests.peers.energon import savable

    target = Path(folder).with_name(f"real-{samples}")
    if not target.exists():
        corpora.make(target, samples)
        peers.prepare_energon(target)
    folder = str(target)
    first = savable(folder)
    seen = 0
    for batch in islice(first, samples):
        seen += batch["samples"]
        if seen >= samples // 2:
            break
    state = first.save_state_rank()

    def resume() -> None:
        again = savable(folder)
        again.restore_state_rank(state)
        next(iter(again))

    grown(resume)


if __name__ == "__main__":
    {"ours": ours, "lhotse": lhotse, "energon": energon}[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
