"""The plan of a corpus on disk: one line a shard, and where each line lies.

It is the same bytes whoever writes it, so that processes that never speak to each other agree on what each does. It is
written as it is made and read a shard at a time: millions of recordings pass through it without being held.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import zipfile
from array import array
from collections.abc import Iterable
from dataclasses import asdict, dataclass, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from data_pipeline.corpus import SPLITS
from data_pipeline.plan import PlannedShard
from data_pipeline.shards import partial_of, replace_atomically
from data_pipeline.sources import Document
from data_pipeline.sources.recording import Recording, Segment
from data_pipeline.utterance import Word
from runtime.exits import BadInput

PLAN_FILE = "plan.jsonl"
INDEX_FILE = "plan.index.npz"  # written last: a plan without it is unfinished


@dataclass(frozen=True)
class PlanEntry:
    """What is known of a planned shard without reading its line. `pieces` and `seconds` are as planned."""

    number: int
    file: str
    spoken: bool
    pieces: int
    seconds: float

    @property
    def split(self) -> str:
        return self.file.partition("/")[0]


@dataclass(frozen=True)
class Plan:
    """A finished plan in `folder`: `entries` in the order of their shards."""

    folder: Path
    entries: tuple[PlanEntry, ...]
    offsets: np.ndarray  # int64 [shards + 1], of the lines

    @classmethod
    def open(cls, folder: Path) -> Plan:
        """Raises BadInput where the corpus at `folder` has no plan, or a damaged one."""
        try:
            with np.load(folder / INDEX_FILE, allow_pickle=False) as arrays:
                held = {name: arrays[name] for name in ("offsets", "files", "spoken", "pieces", "seconds")}
        except FileNotFoundError as error:
            raise BadInput(f"{folder} has no {INDEX_FILE}: no build of this corpus has begun") from error
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise BadInput(f"{folder / INDEX_FILE} is damaged ({error}); remove it to plan again") from error
        columns = (held[name].tolist() for name in ("files", "spoken", "pieces", "seconds"))
        entries = tuple(PlanEntry(number, *row) for number, row in enumerate(zip(*columns, strict=True)))
        return cls(folder, entries, held["offsets"])

    def read(self, number: int) -> PlannedShard:
        """The shard of ordinal `number`. Raises BadInput where its line is damaged."""
        start, end = self.offsets[number : number + 2].tolist()
        try:
            return _shard(json.loads(os.pread(self._file.fileno(), end - start, start)))
        except (ValueError, KeyError, TypeError) as error:
            path = self.folder / PLAN_FILE
            raise BadInput(f"{path} line {number + 1} is damaged ({error}); remove it and {INDEX_FILE}") from error

    @cached_property
    def _file(self) -> io.FileIO:
        return (self.folder / PLAN_FILE).open("rb", buffering=0)


def is_planned(folder: Path) -> bool:
    return (folder / INDEX_FILE).is_file()


def write_plan(folder: Path, shards: Iterable[PlannedShard]) -> Plan:
    """Write `shards` as they come, the plan appearing whole. Raises BadInput where there are none."""
    offsets = array("q", [0])
    columns: dict[str, list[Any]] = {"file": [], "spoken": [], "pieces": [], "seconds": []}
    partial = partial_of(folder / PLAN_FILE)
    try:
        with partial.open("wb") as file:
            for shard in shards:
                line = json.dumps(_plain(shard), separators=(",", ":")).encode() + b"\n"
                file.write(line)
                offsets.append(offsets[-1] + len(line))
                for name, held in columns.items():
                    held.append(getattr(shard, name))
            file.flush()
            os.fsync(file.fileno())
        if not columns["file"]:
            raise BadInput(f"nothing to build in {folder}: the source holds no recording and no text")
        os.replace(partial, folder / PLAN_FILE)
    finally:
        partial.unlink(missing_ok=True)
    index = io.BytesIO()
    arrays = {"files": np.array(columns["file"], np.str_), "spoken": np.array(columns["spoken"], bool)}
    arrays |= {"pieces": np.array(columns["pieces"], np.int64), "seconds": np.array(columns["seconds"], np.float64)}
    np.savez_compressed(index, allow_pickle=False, offsets=np.array(offsets, np.int64), **arrays)
    replace_atomically(folder / INDEX_FILE, index.getvalue())
    return Plan.open(folder)


# --- a line -----------------------------------------------------------------------------------------------------


def _plain(shard: PlannedShard) -> dict[str, Any]:
    plain: dict[str, Any] = {"file": shard.file, "spoken": shard.spoken}
    if shard.documents:
        plain["documents"] = [[document.key, *document.pieces] for document in shard.documents]
    if shard.recordings:
        plain["recordings"] = [_plain_recording(recording) for recording in shard.recordings]
    return plain


def _plain_recording(recording: Recording) -> dict[str, Any]:
    return {
        "key": recording.key,
        "audio": _plain_place(recording.audio),
        "segments": [
            {name: value for name, value in msgspec.to_builtins(segment).items() if value != _DEFAULTS[name]}
            for segment in recording.segments
        ],
        "duration": recording.duration,
        "document": recording.document,
    }


_DEFAULTS = msgspec.to_builtins(Segment())


def _shard(plain: dict[str, Any]) -> PlannedShard:
    split = plain["file"].partition("/")[0]
    if split not in SPLITS:
        raise ValueError(f"no split {split}")
    return PlannedShard(
        split,
        plain["file"],
        plain["spoken"],
        tuple(Document(key, tuple(pieces)) for key, *pieces in plain.get("documents", ())),
        tuple(_recording(recording) for recording in plain.get("recordings", ())),
    )


def _recording(plain: dict[str, Any]) -> Recording:
    segments = []
    for segment in plain["segments"]:
        words = msgspec.convert(segment.pop("words", ()), tuple[Word, ...])
        quality = tuple((name, value) for name, value in segment.pop("quality", ()))
        segments.append(Segment(**segment, words=words, quality=quality))
    return Recording(plain["key"], _place(plain["audio"]), tuple(segments), plain["duration"], plain["document"])


# Where sound lies is a dataclass of its source's module, of numbers and strings.
_PLACES = "data_pipeline.sources.speech."


def _plain_place(place: Any) -> list[Any]:
    kind = type(place)
    if not is_dataclass(kind) or not kind.__module__.startswith(_PLACES):
        raise TypeError(f"a place of sound is a dataclass of a module of {_PLACES}, not {kind}")
    return [kind.__module__.removeprefix(_PLACES), kind.__name__, asdict(place)]


def _place(plain: list[Any]) -> Any:
    module, name, fields = plain
    kind = getattr(importlib.import_module(_PLACES + module), name)
    if not isinstance(kind, type) or not is_dataclass(kind):
        raise ValueError(f"{module}.{name} is no place of sound")
    return kind(**fields)
