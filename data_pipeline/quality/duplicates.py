"""Utterances that a corpus holds more than once, by their sound and by their text.

One pass over the shards makes keys (`sketches`), which lie on disk in parts by their hash. Utterances that share a key
are then compared: fingerprints by their bits where the keys met, texts by their signatures. Memory holds one part of
the keys and about 60 bytes an utterance; the disk, meanwhile, about 900 bytes a second of sound and 900 an utterance.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.audio import decode_flac
from data_pipeline.corpus import SPLITS, Corpus
from data_pipeline.quality.fingerprint import SAME, SHORTEST, bit_error_rate, fingerprint
from data_pipeline.quality.sketches import ALIKE, PERMUTATIONS, band_keys, normalised, signature, sound_keys
from data_pipeline.shards import DamagedSample, ShardReader, add_columns
from runtime.exits import BadInput
from runtime.progress import Progress
from runtime.signals import StopFlag
from runtime.workers import Task, Workers, report_done

_KEY = np.dtype([("key", np.uint64), ("owner", np.int64), ("frame", np.int64)])
_PARTS = 64
_CROWD = 32  # owners of one key that are all compared with each other; of more, each with the one before it
Same = Callable[[int, int, int], bool]  # whether two utterances are the same, where frames meet at an offset


@dataclass(frozen=True)
class Found:
    """Copies of an earlier utterance, of `utterances` that could be compared."""

    audio: int
    audio_hours: float
    compared_audio: int
    text: int
    compared_text: int


def find_duplicates(corpus: Corpus, workers: int, stop: StopFlag | None = None) -> Found:
    """Give every shard of `corpus` the columns `duplicate_audio` and `duplicate_text`: 1 for a copy of an earlier
    utterance, 0 for the first or only one, missing where there is no sound of 0.7 s, or no text.

    The validation split comes first, so that a training utterance that is also in it is the copy. Raises StoppedEarly.
    """
    corpus.require_local("finding duplicates")
    shards = [shard for split in reversed(SPLITS) for shard in corpus.shards(split)]
    progress = Progress(f"duplicates in {corpus.name}")
    with tempfile.TemporaryDirectory(prefix=".duplicates-", dir=corpus.folder) as scratch, Workers(workers) as pool:
        folder = Path(scratch)
        tasks: list[Task] = [(sketch_shard, (shard, folder / f"{number}.npz")) for number, shard in enumerate(shards)]
        pool.run("fingerprints", tasks, len(shards), progress, stop)
        gathered = _Gathered(folder, len(shards))
        progress.say("comparing")
        audio = gathered.copies("sound", gathered.same_sound)
        text = gathered.copies("text", gathered.same_text)
    edges = gathered.edges
    audio[~gathered.heard] = np.nan
    text[~gathered.written] = np.nan
    for shard, first, last in zip(shards, edges[:-1], edges[1:], strict=True):
        if last > first:
            add_columns(shard, {"duplicate_audio": audio[first:last], "duplicate_text": text[first:last]})
    return Found(
        audio=int(np.nansum(audio)),
        audio_hours=float(gathered.durations[audio == 1].sum() / 3600),
        compared_audio=int(gathered.heard.sum()),
        text=int(np.nansum(text)),
        compared_text=int(gathered.written.sum()),
    )


def sketch_shard(shard: Path, target: Path) -> None:
    """Write the fingerprints and signatures of a shard to `target`; reports 1. A damaged utterance has neither, a shard
    without a readable index no utterances."""
    prints: list[np.ndarray] = []
    signatures: list[np.ndarray] = []
    durations = np.zeros(0)
    try:
        with ShardReader(shard) as reader:
            durations = reader.index.duration
            for sample in range(len(reader)):
                words, signed = _sketched(reader, sample)
                prints.append(words)
                signatures.append(signed)
                report_done(1 / len(reader))
    except DamagedSample:  # of the index, or no tar; the funnel and `data verify` name it
        pass
    sizes = np.array([len(words) for words in prints], np.int64)
    everything = np.concatenate([np.zeros(0, np.uint32), *prints])
    stacked = np.array(signatures, np.uint64).reshape(-1, PERMUTATIONS)
    np.savez(target, sizes=sizes, words=everything, signatures=stacked, durations=durations)


def _sketched(reader: ShardReader, sample: int) -> tuple[np.ndarray, np.ndarray]:
    """Fingerprint and signature of one utterance; empty and zeros where there is nothing to compare."""
    nothing = np.zeros(0, np.uint32), np.zeros(PERMUTATIONS, np.uint64)
    try:
        text = normalised(reader.read(sample).text)
        flac = reader.read_audio(sample)
        words = nothing[0] if flac is None else fingerprint(decode_flac(flac))
    except (DamagedSample, BadInput):
        return nothing
    return words if np.count_nonzero(words) >= SHORTEST else nothing[0], signature(text) if text else nothing[1]


class _Gathered:
    """All sketches of a corpus in files of `folder`, read as they are needed."""

    def __init__(self, folder: Path, shards: int) -> None:
        self._folder = folder
        edges, sizes, durations = [0], [np.zeros(0, np.int64)], [np.zeros(0)]
        written = [np.zeros(0, bool)]
        for number in range(shards):
            file = folder / f"{number}.npz"
            with np.load(file, allow_pickle=False) as arrays:
                held = dict(arrays)
            file.unlink()
            self._append("words", held["words"])
            self._append("signatures", held["signatures"])
            self._keys(held, edges[-1])
            edges.append(edges[-1] + len(held["sizes"]))
            sizes.append(held["sizes"])
            durations.append(held["durations"])
            written.append(held["signatures"].any(1))
        self.edges = edges
        self.durations = np.concatenate(durations)
        self.written = np.concatenate(written)
        whole = np.concatenate(sizes)
        self.heard = whole > 0
        self._starts = np.concatenate([[0], np.cumsum(whole)])
        self._words = self._map("words", np.uint32, (-1,))
        self._signatures = self._map("signatures", np.uint64, (-1, PERMUTATIONS))

    def _append(self, name: str, array: np.ndarray) -> None:
        with (self._folder / name).open("ab") as file:
            file.write(np.ascontiguousarray(array).data)

    def _map(self, name: str, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
        path = self._folder / name
        if not path.is_file() or not path.stat().st_size:  # which cannot be mapped
            return np.zeros(0, dtype).reshape(0, *shape[1:])
        return np.memmap(path, dtype, "r").reshape(shape)

    def _keys(self, held: dict[str, np.ndarray], first: int) -> None:
        sounds, texts = [np.zeros(0, _KEY)], [np.zeros(0, _KEY)]
        edges = np.concatenate([[0], np.cumsum(held["sizes"])])
        for number, signed in enumerate(held["signatures"]):
            keys, frames = sound_keys(held["words"][edges[number] : edges[number + 1]])
            sounds.append(_records(keys, first + number, frames))
            if signed.any():
                bands = band_keys(signed)
                texts.append(_records(bands, first + number, np.zeros(len(bands), np.int64)))
        for name, records in (("sound", np.concatenate(sounds)), ("text", np.concatenate(texts))):
            parts = records["key"] % np.uint64(_PARTS)
            for part in np.unique(parts).tolist():
                self._append(f"{name}-{part}", records[parts == part])

    def copies(self, name: str, same: Same) -> np.ndarray:
        """float64 [utterances]: 1 for each that is the same as an earlier one, else 0."""
        first = np.arange(self.edges[-1])  # a forest: each points to an earlier one that is the same, or to itself

        def root(of: int) -> int:
            while first[of] != of:
                first[of] = first[first[of]]
                of = int(first[of])
            return of

        for part in range(_PARTS):
            for one, other, offset in _meetings(self._folder / f"{name}-{part}"):
                a, b = root(one), root(other)
                if a != b and same(one, other, offset):
                    first[max(a, b)] = min(a, b)
        return (first != np.arange(len(first))).astype(np.float64)

    def same_sound(self, one: int, other: int, offset: int) -> bool:
        left, right = (self._words[self._starts[i] : self._starts[i + 1]] for i in (one, other))
        return bit_error_rate(left, right, offset) <= SAME

    def same_text(self, one: int, other: int, offset: int) -> bool:
        return float((self._signatures[one] == self._signatures[other]).mean()) >= ALIKE


def _records(keys: np.ndarray, owner: int, frames: np.ndarray) -> np.ndarray:
    records = np.empty(len(keys), _KEY)
    records["key"], records["owner"], records["frame"] = keys, owner, frames
    return records


def _meetings(file: Path) -> Iterator[tuple[int, int, int]]:
    """Pairs of owners of one key, the earlier first, and by how many frames the later one's comes later; each once."""
    if not file.is_file():
        return
    records = np.fromfile(file, _KEY)
    records = records[np.lexsort((records["owner"], records["key"]))]
    borders = np.flatnonzero(np.diff(records["key"])) + 1
    starts, ends = np.concatenate([[0], borders]), np.concatenate([borders, [len(records)]])
    seen: set[tuple[int, int, int]] = set()
    for start, end in zip(starts[ends - starts > 1].tolist(), ends[ends - starts > 1].tolist(), strict=True):
        crowded = end - start > _CROWD
        for later in range(start + 1, end):
            for earlier in range(later - 1 if crowded else start, later):
                one, other = records[earlier], records[later]
                meeting = int(one["owner"]), int(other["owner"]), int(other["frame"] - one["frame"])
                if meeting not in seen:
                    seen.add(meeting)
                    yield meeting
