"""A corpus: a folder of shards in `train/` and `valid/`, their vocabulary, and the manifest that completes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import xxhash

from data_pipeline.remote.mirror import mirror_at
from data_pipeline.shards import read_index, replace_atomically
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput

MANIFEST_FILE = "manifest.json"
MANIFEST_FORMAT = 2
SPLITS = ("train", "valid")


@dataclass(frozen=True)
class Corpus:
    """A folder of shards under one manifest. `splits` maps "train" and "valid" to the manifest's entries:
    {file, samples, documents, spoken_documents, bytes, xxh3, characters, duration, frames: {codebook: n}}. `left_out`
    says what its build left out, by kind: {count, examples}; `features` what it keeps of encoders, by the name that
    samples have it under: {encoder, kind, width}."""

    folder: Path
    name: str
    content_hash: str
    vocabulary: Vocabulary
    codecs: dict[str, Any]
    splits: dict[str, list[dict[str, Any]]]
    totals: dict[str, Any]
    left_out: dict[str, Any] = field(default_factory=dict)
    features: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> Corpus:
        """Read the manifest and the vocabulary. Raises BadInput where the folder is not a finished corpus.

        Shards are not opened: one that is missing or damaged costs its own samples only, when they are read.
        """
        if not folder.is_dir():
            raise BadInput(f"no corpus at {folder}: the folder does not exist")
        path = folder / MANIFEST_FILE
        if not path.is_file():
            begun = any((folder / split).is_dir() for split in SPLITS)
            problem = "it is unfinished; build it again to go on" if begun else "it is not a corpus"
            raise BadInput(f"{folder} has no {MANIFEST_FILE}: {problem}")
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            if manifest["format"] != MANIFEST_FORMAT:
                raise BadInput(f"{path}: format {manifest['format']}, but this version reads {MANIFEST_FORMAT}")
            described = manifest.pop("vocabulary")
            parts = {key: manifest[key] for key in ("name", "content_hash", "codecs", "splits", "totals")}
            parts |= {key: manifest.get(key, {}) for key in ("left_out", "features")}
            for entry in (entry for split in SPLITS for entry in parts["splits"][split]):
                _ = entry["documents"], entry["spoken_documents"]  # what reading relies on
                if not _is_inside(entry["file"]):
                    raise BadInput(f"{path} names a shard outside the corpus: {entry['file']!r}; do not trust it")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{path} is damaged ({error!r}); build the corpus again") from error
        vocabulary = Vocabulary.load(folder)
        if vocabulary.describe() != described:
            raise BadInput(f"{folder}: the vocabulary in {MANIFEST_FILE} is not the one in vocabulary.json")
        return cls(folder=folder, vocabulary=vocabulary, **parts)

    def require_local(self, doing: str) -> None:
        """Raise BadInput where the corpus stands for one behind a URL: `doing` writes into a corpus, or reads all."""
        mirror = mirror_at(self.folder)
        if mirror is not None:
            raise BadInput(f"{doing} works where the corpus lies, on a disk; this one is behind {mirror.url}")

    def shards(self, split: str) -> list[Path]:
        """Where the tars are; of a corpus behind a URL, where they come to when they are read."""
        return [self.folder / entry["file"] for entry in self.splits[split]]


def _is_inside(file: str) -> bool:
    """Whether a path of a manifest stays in its folder, wherever that is."""
    return not PurePosixPath(file).is_absolute() and ".." not in PurePosixPath(file).parts and "\\" not in file


def describe_shard(shard: Path, folder: Path) -> dict[str, Any]:
    """The manifest entry of a finished shard; `file` is relative to `folder`."""
    index = read_index(shard)
    hashed = xxhash.xxh3_128()
    with shard.open("rb") as file:
        while block := file.read(1 << 20):
            hashed.update(block)
    return {
        "file": shard.relative_to(folder).as_posix(),
        "samples": len(index),
        "documents": len(index.documents),
        "spoken_documents": len(index.spoken_documents),
        "bytes": shard.stat().st_size,
        "xxh3": hashed.hexdigest(),
        "characters": int(index.characters.sum()),
        "duration": round(float(index.duration.sum()), 3),
        "frames": {name: int(count.sum()) for name, count in index.frames.items()},
    }


def write_manifest(
    folder: Path,
    *,
    name: str,
    vocabulary: Vocabulary,
    codecs: Mapping[str, Any],
    entries: Mapping[str, list[dict[str, Any]]] | None = None,
    left_out: Mapping[str, Any] | None = None,
    features: Mapping[str, Any] | None = None,
) -> Corpus:
    """Declare the corpus at `folder` complete.

    `entries` has what `describe_shard` gave, by split; None: every finished shard in `folder`/train and /valid is
    described now. `codecs` is kept as it is (JSON-ready): what made the codes, with hashes; `left_out` and `features`
    likewise. The content hash covers the shards, the vocabulary, the tokenizer and the codecs. Returns the corpus,
    opened.
    """
    if entries is None:
        splits = {
            split: [describe_shard(shard, folder) for shard in sorted((folder / split).glob("*.tar"))]
            for split in SPLITS
        }
    else:
        splits = {split: list(entries.get(split, ())) for split in SPLITS}
    for file, text in vocabulary.files().items():
        replace_atomically(folder / file, text.encode())
    manifest = {
        "format": MANIFEST_FORMAT,
        "name": name,
        "content_hash": content_hash(vocabulary, splits, codecs),
        "vocabulary": vocabulary.describe(),
        "codecs": dict(codecs),
        "splits": splits,
        "totals": {split: _totals(held) for split, held in splits.items()},
        "left_out": dict(left_out or {}),
        "features": dict(features or {}),
    }
    replace_atomically(folder / MANIFEST_FILE, json.dumps(manifest, indent=2).encode())
    return Corpus.open(folder)


def content_hash(vocabulary: Vocabulary, splits: Mapping[str, list[dict[str, Any]]], codecs: Mapping[str, Any]) -> str:
    """What two corpora have in common where they hold the same samples under the same vocabulary and codecs."""
    covered = [vocabulary.describe(), vocabulary.tokenizer_json, splits, codecs]
    return xxhash.xxh3_128_hexdigest(json.dumps(covered, sort_keys=True).encode())


def _totals(entries: list[dict[str, Any]]) -> dict[str, Any]:
    counted = ("samples", "documents", "spoken_documents", "bytes", "characters", "duration")
    totals: dict[str, Any] = {key: sum(entry[key] for entry in entries) for key in counted}
    names = sorted({name for entry in entries for name in entry["frames"]})
    totals["frames"] = {name: sum(entry["frames"].get(name, 0) for entry in entries) for name in names}
    return totals
