"""What it takes a library to go on in the middle of an epoch of many samples: from opening to the first batch.

Prints seconds and the memory that the process grew by. Imports are done before.
"""

from __future__ import annotations

import json
import os
import sys
import tarfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np

REAL = 100_000  # samples of a whole corpus that there is time to write


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
        cut = MonoCut("KEY", 0, 12345.0, 0, supervisions=[SupervisionSegment("KEY", "KEY", 0, 12345.0)])
        line = json.dumps(cut.to_dict()) + "\n"  # writing each by lhotse takes half an hour for 10 M
        with file.open("w") as lines:
            for number in range(samples):
                duration = 5 + number * 7919 % 9000 / 1000
                lines.write(line.replace("KEY", f"u{number:09d}").replace("12345.0", str(duration)))

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


def keys_alone(folder: Path, samples: int) -> None:
    """Shards of 1,000 samples of one json member that says nothing."""
    plain = tarfile.TarInfo("u000000000.json")
    plain.size = 2
    head = np.frombuffer(plain.tobuf(tarfile.USTAR_FORMAT) + b"{}".ljust(tarfile.BLOCKSIZE, b"\0"), np.uint8)
    zeros = int(head[148:154].tobytes(), 8)  # the header's checksum, which the digits of a key add to
    for split, count in (("train", samples), ("valid", 1000)):
        (folder / split).mkdir(parents=True)
        for first in range(0, count, 1000):
            numbers = np.arange(first, first + 1000) + (samples if split == "valid" else 0)
            digits = numbers[:, None] // 10 ** np.arange(8, -1, -1) % 10
            members = np.tile(head, (1000, 1))
            members[:, 1:10] += digits.astype(np.uint8)
            sums = zeros + digits.sum(axis=1)
            members[:, 148:154] = sums[:, None] // 8 ** np.arange(5, -1, -1) % 8 + ord("0")
            content = members.tobytes() + bytes(2 * tarfile.BLOCKSIZE)
            (folder / split / f"shard-{first // 1000:06d}.tar").write_bytes(content)


def energon(folder: str, samples: int) -> None:
    """Prepared shards; the loader's state after half of them, or after 50,000. It refuses a key that comes twice, as
    all do where one shard stands for many: so all samples are there, above 100,000 as keys and next to nothing else."""
    from tests import peers
    from tests.peers import corpora
    from tests.peers.energon import savable

    target = Path(folder).with_name(f"real-{samples}")
    job = "rows" if samples <= REAL else "read"
    if not target.exists():
        if samples <= REAL:
            corpora.make(target, samples)
        else:
            keys_alone(target, samples)
        peers.prepare_energon(target)
    folder = str(target)
    first = savable(folder, job)
    seen = 0
    for batch in islice(first, samples):
        seen += batch["samples"]
        if seen >= min(samples, REAL) // 2:
            break
    state = first.save_state_rank()

    def resume() -> None:
        again = savable(folder, job)
        again.restore_state_rank(state)
        next(iter(again))

    grown(resume)


if __name__ == "__main__":
    {"ours": ours, "lhotse": lhotse, "energon": energon}[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
