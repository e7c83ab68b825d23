"""Shards: plain WebDataset tars of utterances, and an index beside each.

A shard holds, for each utterance in turn, `<key>.json`, one `<key>.<codebook>.npy` a codebook (integers), one
`<key>.<encoder>.npy` an encoder whose features are kept (float16) and, last, an optional `<key>.flac`. The index says
where each utterance lies, so that one `pread` fetches it; the audio stands last so that training never reads it.

What filters ask for stands in the index too: numbers as `columns`, names as `labels`. Numbers that are measured later
go into a file of their own beside the index (`add_columns`), and no tar is written again.
"""

from __future__ import annotations

import io
import json
import math
import os
import platform
import re
import tarfile
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from data_pipeline.remote.mirror import fetch_index, mirror_of
from data_pipeline.sample_bytes import (
    BAD_ARCHIVE,
    READING_HEADERS,
    STORED,
    DamagedSample,
    array_from_npy,
    members_of,
    utterance_of,
)
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary

AUDIO = "flac"
PARTIAL = ".partial"  # how names of unfinished files end
_FRAMES = "frames."  # prefix of the per-codebook arrays in an index file
_NAME = re.compile(r"[A-Za-z0-9_\-]+")  # WebDataset ends a key at its first dot; nothing here can be a path
_LONGEST_MEMBER_NAME = 100  # of a ustar header
_COLUMN = "column."  # prefix of the numbers that filters ask for, in an index file
_LABEL = "label."  # prefix of the names
LABELS = ("language", "speaker", "source", "role", "style")  # fields of an utterance that an index holds


def partial_of(path: Path) -> Path:
    """Where this process writes what becomes `path`: beside it, under a name that no other process on any host uses."""
    return path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}{PARTIAL}")


def replace_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a reader sees the old file or the whole new one."""
    partial = partial_of(path)
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


# --- index ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShardIndex:
    """One entry a sample: where it lies and how much it holds.

    offset, size: int64, byte span of the json and npy members with their headers; audio_size: int64, of the audio
    member that follows, 0 if none. crc32, audio_crc32: uint32, of those spans. characters: int32, of the text.
    duration: float64, seconds. document: int32, ordinal in this shard. frames: int32 for each codebook, 0 where a
    sample has no codes of it. columns: float32 for each thing measured (`Utterance.quality`), NaN where it was not.
    labels: str for each of LABELS.
    """

    offset: np.ndarray
    size: np.ndarray
    audio_size: np.ndarray
    crc32: np.ndarray
    audio_crc32: np.ndarray
    characters: np.ndarray
    duration: np.ndarray
    document: np.ndarray
    frames: dict[str, np.ndarray] = field(default_factory=dict)
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    labels: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.offset)

    @cached_property
    def spoken(self) -> np.ndarray:
        """bool: samples that have codes."""
        counts = list(self.frames.values())
        return np.sum(counts, axis=0) > 0 if counts else np.zeros(len(self), bool)

    @cached_property
    def documents(self) -> np.ndarray:
        """First sample of each document and one past its last: int64 [documents, 2]."""
        edges = np.flatnonzero(np.diff(self.document, prepend=-1, append=-2))
        return np.stack([edges[:-1], edges[1:]], axis=1)

    @cached_property
    def spoken_documents(self) -> np.ndarray:
        """The rows of `documents` that have a spoken sample."""
        spoken = np.concatenate([[0], np.cumsum(self.spoken)])
        return self.documents[spoken[self.documents[:, 1]] > spoken[self.documents[:, 0]]]


_COLUMNS: dict[str, Any] = {
    "offset": np.int64,
    "size": np.int64,
    "audio_size": np.int64,
    "crc32": np.uint32,
    "audio_crc32": np.uint32,
    "characters": np.int32,
    "duration": np.float64,
    "document": np.int32,
}


def index_path(shard: Path) -> Path:
    return shard.with_suffix(".index.npz")


def columns_path(shard: Path) -> Path:
    """Where numbers stand that were measured after the shard `shard` was written."""
    return shard.with_suffix(".columns.npz")


def read_index(shard: Path) -> ShardIndex:
    """Read the index of the tar `shard`, and the columns added to it. Raises DamagedSample (kind index) where either is
    unreadable, or the index missing."""
    path = index_path(shard)
    fetch_index(shard, (path, columns_path(shard)))
    try:
        with READING_HEADERS, np.load(path, allow_pickle=False) as arrays:
            index = ShardIndex(
                **{name: arrays[name] for name in _COLUMNS},
                frames=_with_prefix(arrays, _FRAMES),
                columns=_with_prefix(arrays, _COLUMN),
                labels=_with_prefix(arrays, _LABEL),
            )
        if columns_path(shard).is_file():
            path = columns_path(shard)
            with READING_HEADERS, np.load(path, allow_pickle=False) as arrays:
                index.columns.update(arrays)
    except BAD_ARCHIVE as error:
        raise DamagedSample("index", str(path)) from error
    lengths = {len(getattr(index, name)) for name in _COLUMNS}
    lengths |= {len(held) for held in (*index.frames.values(), *index.columns.values(), *index.labels.values())}
    if len(lengths) != 1:
        raise DamagedSample("index", str(path))
    return index


def add_columns(shard: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Put `columns`, float [samples] by name, beside the index of `shard`, over older ones of the same names."""
    path = columns_path(shard)
    held: dict[str, np.ndarray] = {}
    if path.is_file():
        with np.load(path, allow_pickle=False) as arrays:
            held = dict(arrays)
    packed = io.BytesIO()
    added = {name: np.asarray(values, np.float32) for name, values in columns.items()}
    np.savez_compressed(packed, allow_pickle=False, **held | added)
    replace_atomically(path, packed.getvalue())


def _with_prefix(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}


# --- writing ----------------------------------------------------------------------------------------------------


class ShardWriter:
    """Writes one shard: `with ShardWriter(path, vocabulary) as shard: shard.write(utterance)`.

    With a vocabulary, that of the corpus, each utterance keeps the ids of its text: encoding them takes a loader longer
    than reading the rest. The tar appears under its name when the block ends well, and its index after it: a tar without an index is
    unfinished. The same utterances always give the same bytes. Nothing is left behind when the block raises.
    """

    def __init__(self, path: Path, vocabulary: Vocabulary | None = None) -> None:
        self.path = path
        self._vocabulary = vocabulary
        self._partial = partial_of(path)
        self._rows: list[dict[str, float]] = []
        self._frames: list[dict[str, int]] = []
        self._quality: list[dict[str, float]] = []
        self._labels: list[list[str]] = []
        self._documents: dict[str, int] = {}
        self._document = ""

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._partial.open("wb")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with ExitStack() as stack:  # what is buffered is written as the file is closed: on a full disk that raises too
            stack.callback(self._partial.unlink, missing_ok=True)
            stack.enter_context(self._file)
            if kind is None:
                self._finish()

    def write(self, utterance: Utterance, audio: bytes | None = None) -> None:
        """Append `utterance`, with the bytes of its flac file if it has any.

        Raises ValueError for a key, codebook or encoder name that is more than letters, digits, `_` and `-`, for codes
        that are not non-negative integers [rows, frames], for features that are not finite numbers [frames, width], and
        for a document that was left and comes again.
        """
        if utterance.document != self._document or not self._documents:
            if utterance.document in self._documents:
                raise ValueError(f"{self.path}: utterances of document {utterance.document!r} do not stand together")
            self._document = utterance.document
            self._documents[utterance.document] = len(self._documents)
        described = {name: getattr(utterance, name) for name in STORED}
        described["words"] = [[word.text, word.start, word.end] for word in utterance.words]
        described["quality"] = {name: value for name, value in utterance.quality.items() if math.isfinite(value)}
        if self._vocabulary is not None:
            described["ids"] = self._vocabulary.encode_text(utterance.text)
        text = json.dumps(described, ensure_ascii=False, separators=(",", ":"))
        span = _member(utterance.key, "json", text.encode())
        for name in sorted(utterance.codes):
            span += _member(utterance.key, f"{name}.npy", _codes_as_npy(utterance.codes[name], utterance.key, name))
        for name in sorted(utterance.features):
            span += _member(
                utterance.key, f"{name}.npy", _features_as_npy(utterance.features[name], utterance.key, name)
            )
        sound = b"" if audio is None else _member(utterance.key, AUDIO, audio)
        self._rows.append(
            {
                "offset": self._file.tell(),
                "size": len(span),
                "audio_size": len(sound),
                "crc32": zlib.crc32(span),
                "audio_crc32": zlib.crc32(sound),
                "characters": len(utterance.text),
                "duration": utterance.duration,
                "document": self._documents[utterance.document],
            }
        )
        self._frames.append({name: codes.shape[1] for name, codes in utterance.codes.items()})
        self._quality.append(utterance.quality)
        self._labels.append([getattr(utterance, name) for name in LABELS])
        self._file.write(span)
        self._file.write(sound)

    def _finish(self) -> None:
        self._file.write(bytes(2 * tarfile.BLOCKSIZE))
        self._file.flush()
        os.fsync(self._file.fileno())
        arrays = {name: np.array([row[name] for row in self._rows], dtype) for name, dtype in _COLUMNS.items()}
        for codebook in sorted({name for frames in self._frames for name in frames}):
            arrays[_FRAMES + codebook] = np.array([frames.get(codebook, 0) for frames in self._frames], np.int32)
        for column in sorted({name for quality in self._quality for name in quality}):
            arrays[_COLUMN + column] = np.array([quality.get(column, np.nan) for quality in self._quality], np.float32)
        for number, label in enumerate(LABELS):
            arrays[_LABEL + label] = np.array([labels[number] for labels in self._labels], np.str_)
        packed = io.BytesIO()
        np.savez_compressed(packed, allow_pickle=False, **arrays)
        for older in (index_path(self.path), columns_path(self.path)):  # of an older tar
            older.unlink(missing_ok=True)
        os.replace(self._partial, self.path)
        replace_atomically(index_path(self.path), packed.getvalue())


def _member(key: str, extension: str, content: bytes) -> bytes:
    """One tar member, header and padding included; same content, same bytes."""
    name = f"{key}.{extension}"
    if not _NAME.fullmatch(key) or not _NAME.fullmatch(extension.removesuffix(".npy")):
        raise ValueError(f"{name!r}: keys and codebook names are letters, digits, '_' and '-' only")
    if len(name) > _LONGEST_MEMBER_NAME:
        raise ValueError(f"{name!r}: longer than {_LONGEST_MEMBER_NAME} characters")
    header = tarfile.TarInfo(name)
    header.size = len(content)
    header.mode = 0o644
    return header.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def _codes_as_npy(codes: np.ndarray, key: str, codebook: str) -> bytes:
    if codes.ndim != 2 or codes.dtype.kind not in "iu" or (codes.size and codes.min() < 0):
        raise ValueError(f"{key}: codes of {codebook} must be non-negative integers [codebooks, frames]")
    small = codes.size == 0 or codes.max() <= np.iinfo(np.int16).max
    content = io.BytesIO()
    np.save(content, np.ascontiguousarray(codes, np.int16 if small else np.int32), allow_pickle=False)
    return content.getvalue()


def _features_as_npy(features: np.ndarray, key: str, encoder: str) -> bytes:
    if features.ndim != 2 or features.dtype.kind != "f" or not np.isfinite(features).all():
        raise ValueError(f"{key}: features of {encoder} must be finite numbers [frames, width]")
    content = io.BytesIO()
    np.save(content, np.ascontiguousarray(features, np.float16), allow_pickle=False)
    return content.getvalue()


# --- reading ----------------------------------------------------------------------------------------------------


class ShardReader:
    """Random access to the utterances of one shard. Damage of any kind ends in DamagedSample."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.index = read_index(path)
        self._file = _open_shard(path, self.index)
        self._sound = self._file if mirror_of(path) is None else None  # where audio is, once it is here

    def close(self) -> None:
        for file in (self._file, self._sound):
            if file is not None:
                file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.index)

    def read(self, sample: int) -> Utterance:
        """The utterance of ordinal `sample`, without its audio."""
        index = self.index
        span = self._span(
            self._file, sample, int(index.offset[sample]), int(index.size[sample]), int(index.crc32[sample])
        )
        where = f"{self.path} sample {sample}"
        members = members_of(span, where)
        described = next((content for name, content in members.items() if name.endswith(".json")), None)
        if described is None:
            raise DamagedSample("members", where)
        codes: dict[str, np.ndarray] = {}
        features: dict[str, np.ndarray] = {}
        for name, content in members.items():
            if name.endswith(".npy"):
                array = array_from_npy(content, where)
                (features if array.dtype.kind == "f" else codes)[name.split(".")[1]] = array
        return utterance_of(described, codes, features, where)

    def first_member(self, sample: int) -> str:
        """The name of the file that ordinal `sample` begins with, its json; "" where the tar ends before."""
        header = os.pread(self._file.fileno(), tarfile.BLOCKSIZE, int(self.index.offset[sample]))
        return header[:100].rstrip(b"\0").decode("ascii", "replace")

    def read_audio(self, sample: int) -> bytes | None:
        """The flac file of ordinal `sample`, or None where the shard has no audio for it."""
        index = self.index
        if not index.audio_size[sample]:
            return None
        if self._sound is None:
            self._sound = _open_shard(self.path, None)
        offset = int(index.offset[sample] + index.size[sample])
        span = self._span(self._sound, sample, offset, int(index.audio_size[sample]), int(index.audio_crc32[sample]))
        contents = list(members_of(span, f"{self.path} sample {sample}").values())
        if len(contents) != 1:
            raise DamagedSample("members", f"{self.path} sample {sample}")
        return contents[0]

    def _span(self, file: IO[bytes], sample: int, offset: int, size: int, crc32: int) -> bytes:
        try:
            span = os.pread(file.fileno(), size, offset)
        except (OSError, OverflowError, ValueError) as error:
            raise DamagedSample("truncated", f"{self.path} sample {sample}") from error
        if len(span) != size:
            raise DamagedSample("truncated", f"{self.path} sample {sample}")
        if zlib.crc32(span) != crc32:
            raise DamagedSample("checksum", f"{self.path} sample {sample}")
        return span


def _open_shard(path: Path, index: ShardIndex | None) -> IO[bytes]:
    """The tar, wherever it is; of a mirrored one for sure only what `index` says of codes and texts, None: all."""
    mirror = mirror_of(path)
    try:
        if mirror is None:
            return path.open("rb", buffering=0)
        spans = None if index is None else np.stack([index.offset, index.offset + index.size], axis=1)
        return mirror.open_shard(path, spans)
    except OSError as error:
        raise DamagedSample("missing", str(path)) from error
