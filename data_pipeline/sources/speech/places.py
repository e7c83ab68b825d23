"""Where the sound of a recording lies: plain data that any process can turn into samples."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from data_pipeline.decode import decode_blocks
from data_pipeline.remote.storage import open_file
from data_pipeline.sources.address import is_url
from data_pipeline.sources.recording import Sound, UnreadableAudio


class Place(Protocol):
    """`file` is what has to be there, a path or a URL; `name` says in messages which sound is meant."""

    @property
    def file(self) -> str: ...

    @property
    def name(self) -> str: ...

    def blocks(self, start: float, end: float | None, lasting: float | None) -> Iterator[Sound]:
        """The sound from `start` to `end` seconds of the recording, in blocks. `lasting` is how many seconds its source
        says that it has in all. Raises UnreadableAudio."""
        ...


@dataclass(frozen=True)
class FileStretch:
    """A file, or what lies between `start` and `end` seconds in it."""

    file: str
    start: float = 0.0
    end: float | None = None

    @property
    def name(self) -> str:
        return self.file

    def blocks(self, start: float, end: float | None, lasting: float | None) -> Iterator[Sound]:
        last = self.end if end is None else self.start + end
        if self.end is not None and last is not None:
            last = min(last, self.end)
        whole = self.start == 0 and self.end is None
        return decode_blocks(self.file, self.file, self.start + start, last, lasting=lasting if whole else None)


@dataclass(frozen=True)
class FilePart:
    """`size` bytes of a file from `offset` on, such as a member of an uncompressed tar: nothing is unpacked."""

    file: str
    offset: int
    size: int
    member: str  # what the part is called inside; never used as a path

    @property
    def name(self) -> str:
        return f"{self.file}: {self.member}"

    def blocks(self, start: float, end: float | None, lasting: float | None) -> Iterator[Sound]:
        try:
            if is_url(self.file):
                with open_file(self.file, cache_type="none") as remote:
                    remote.seek(self.offset)
                    content = remote.read(self.size)
            else:
                with open(self.file, "rb") as local:
                    content = os.pread(local.fileno(), self.size, self.offset)
        except FileNotFoundError as error:
            raise UnreadableAudio("missing", self.name) from error
        if len(content) < self.size:
            raise UnreadableAudio("truncated", self.name)
        yield from decode_blocks(content, self.name, start, end, lasting=lasting)


@dataclass(frozen=True)
class Nowhere:
    """What cannot be read whatever is done: `kind` says why. It stands in a source so that it is counted."""

    file: str
    kind: str

    @property
    def name(self) -> str:
        return self.file

    def blocks(self, start: float, end: float | None, lasting: float | None) -> Iterator[Sound]:
        raise UnreadableAudio(self.kind, self.file)


@dataclass(frozen=True)
class Written:
    """No sound: the text was written, in `file`. It is no damage."""

    file: str

    @property
    def name(self) -> str:
        return self.file

    def blocks(self, start: float, end: float | None, lasting: float | None) -> Iterator[Sound]:
        raise UnreadableAudio("missing", self.file, "text that nobody said has no sound")


def inside(folder: str | Path, path: str) -> Place:
    """The file `path`, as metadata that was downloaded names it, in `folder`: a path that leads out is not followed.

    A folder or file that the user has linked elsewhere is.
    """
    root = os.path.abspath(folder)
    joined = os.path.normpath(os.path.join(root, path))
    if not path or "\0" in path or is_url(path) or not joined.startswith(root.rstrip(os.sep) + os.sep):
        return Nowhere(f"{folder}: {path!r}", "outside")
    return FileStretch(joined)


def beside(folder: str | Path, path: str, start: float = 0.0, end: float | None = None) -> Place:
    """The file `path`, as the user's own manifest names it: anywhere, relative to `folder`, or a URL."""
    if "\0" in path:
        return Nowhere(f"{folder}: {path!r}", "missing")
    return FileStretch(path if is_url(path) else os.path.join(folder, path), start, end)
