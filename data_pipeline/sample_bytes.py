"""The bytes of one sample: what is wrong with them, and the utterance that they are."""

from __future__ import annotations

import io
import lzma
import re
import struct
import tarfile
import threading
import tokenize
import zipfile
import zlib
from dataclasses import fields
from functools import lru_cache

import msgspec
import numpy as np

from data_pipeline.utterance import Utterance

_MEMBER_NAME = re.compile(rb"[A-Za-z0-9_\-]+(\.[A-Za-z0-9_\-]+)?\.[a-z0-9]+")  # nothing that could be a path
STORED = [f.name for f in fields(Utterance) if f.name not in ("codes", "features", "audio", "ids")]
_described = msgspec.json.Decoder(Utterance)  # refuses numbers that are not finite, and text that is not UTF-8
BAD_ARCHIVE = (  # what zipfile and numpy raise on flipped bytes; RuntimeError is "encrypted" or "not supported"
    *(OSError, ValueError, TypeError, LookupError, EOFError, RuntimeError, MemoryError, SyntaxError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, tokenize.TokenError),
)
# Held while numpy reads headers, which it has Python compile. CPython 3.11 keeps one count of the depth for all
# threads, and two that compile at once make a sound file look damaged.
READING_HEADERS = threading.RLock()
LEFT_OUT_KINDS = ("role", "too_long")  # of whole documents or samples, that a layout or a pack cannot take
DAMAGE_KINDS = ("missing", "index", "truncated", "checksum", "members", "json", "codes", "features", "audio")


class DamagedSample(Exception):
    """Bytes that are not the utterance they should be, or utterances that are not the document that they should be.
    `kind` is one of DAMAGE_KINDS or LEFT_OUT_KINDS; `where` names the file and the sample, or the document."""

    def __init__(self, kind: str, where: str) -> None:
        super().__init__(kind, where)  # by which it is made again where another process raised it
        self.kind = kind
        self.where = where

    def __str__(self) -> str:
        return f"{self.where}: {self.kind}"


def members_of(span: bytes, where: str) -> dict[str, bytes]:
    """Contents of the regular files in a run of ustar members, by name. Nothing is written anywhere.

    Reads the three header fields it needs by itself: `tarfile` takes ten times as long.
    """
    found = {}
    at = 0
    while at < len(span):
        header = span[at : at + tarfile.BLOCKSIZE]
        at += tarfile.BLOCKSIZE
        name = header[:100].rstrip(b"\0")
        try:
            size = int(header[124:135], 8)
        except ValueError as error:
            raise DamagedSample("members", where) from error
        plain = header[156:157] == tarfile.REGTYPE and not header[345:346].rstrip(b"\0")  # no link, no folder before it
        if not plain or not _MEMBER_NAME.fullmatch(name) or not 0 <= size <= len(span) - at:
            raise DamagedSample("members", where)
        found[name.decode("ascii")] = span[at : at + size]
        at += size + -size % tarfile.BLOCKSIZE
    return found


def array_from_npy(content: bytes, where: str) -> np.ndarray:
    """What an npy file (format 1.0) holds, as a read-only view of `content`: codes, integers [rows, frames], or
    features, finite float16 [frames, width]."""
    try:
        start = 10 + int.from_bytes(content[8:10], "little")
        dtype, shape = _npy_header(content[:start])
        array = np.frombuffer(content, dtype, offset=start).reshape(shape)
    except BAD_ARCHIVE as error:
        raise DamagedSample("codes", where) from error
    if array.ndim != 2 or not (dtype.kind in "iu" or dtype == np.float16):
        raise DamagedSample("codes", where)
    if dtype == np.float16 and not np.isfinite(array).all():
        raise DamagedSample("features", where)
    return array


@lru_cache(4096)
def _npy_header(header: bytes) -> tuple[np.dtype, tuple[int, ...]]:
    """dtype and shape that an npy header states; few differ, and parsing one takes longer than the rest of a read."""
    file = io.BytesIO(header)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("not npy format 1.0")
    with READING_HEADERS:
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran_order or dtype.hasobject:
        raise ValueError("not plain numbers in C order")
    return dtype, shape


def utterance_of(
    described: bytes, codes: dict[str, np.ndarray], features: dict[str, np.ndarray], where: str
) -> Utterance:
    """The utterance that the json member tells of, with its arrays. Names in it that are not of an utterance say
    nothing."""
    try:
        utterance = _described.decode(described)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise DamagedSample("json", where) from error
    utterance.codes.update(codes)
    utterance.features.update(features)
    return utterance
