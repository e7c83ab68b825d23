"""The folder that stands for a remote corpus on this machine, and the shards of it that are here.

Manifest, vocabulary and centroids are copied when a corpus is first asked for, so the folder opens as any corpus does;
shards and their indexes come when they are read. Of a shard only what training reads is fetched: audio stands between
the codes, and stays where it is until somebody asks for it. The processes of a machine share the folder. Together the
shards of all mirrors take `most_bytes`; beyond that those opened longest ago go; of one that is still open somewhere
the file system keeps the bytes until it is closed.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from queue import SimpleQueue
from typing import IO

import numpy as np

from data_pipeline.remote.files import RemoteFolder
from runtime.exits import BadInput

ORIGIN_FILE = "origin.json"  # in a folder that mirrors a remote one
WHOLE = ".whole"  # in the names of shards that are here with their audio
_PARTIAL = ".fetching"
_STALE = 24 * 3600.0  # seconds after which an unfinished file is nobody's any more
_GAP = 256 << 10  # bytes: spans no further apart are fetched as one


@dataclass(frozen=True)
class Mirror:
    """`folder` stands for the corpus at `url`."""

    folder: Path
    url: str
    most_bytes: int

    @cached_property
    def remote(self) -> RemoteFolder:
        return RemoteFolder(self.url)

    def fetch_once(self, path: Path, fetch: Callable[[str, IO[bytes]], object]) -> bool:
        """Have `fetch(remote name, file)` fill the file `path` of this folder, unless it is here; one process at a
        time. The file appears whole. Returns whether it was fetched; raises what `fetch` does, and BadInput where the
        disk is full or fails."""
        if path.is_file():
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}{_PARTIAL}")
        with _alone(unfinished) as partial:
            if path.is_file():  # another process was faster
                unfinished.unlink()
                return False
            partial.truncate(0)
            try:
                fetch(path.relative_to(self.folder).as_posix(), partial)
                partial.flush()
                os.fsync(partial.fileno())
                os.replace(unfinished, path)
            except OSError as error:
                unfinished.unlink()
                if isinstance(error, FileNotFoundError):
                    raise
                raise BadInput(f"cannot keep {path}: {error.strerror or error}") from error
            except BaseException:
                unfinished.unlink()
                raise
        return True

    def small_file(self, path: Path) -> None:
        """Fetch a file whole. Raises FileNotFoundError where the remote corpus has none."""
        self.fetch_once(path, lambda name, file: file.write(self.remote.read(name)))

    def if_there(self, path: Path) -> None:
        """Fetch a file whole, or leave it missing where the remote corpus has none."""
        with suppress(FileNotFoundError):
            self.small_file(path)

    def open_shard(self, path: Path, spans: np.ndarray | None) -> IO[bytes]:
        """The shard `path`, open for reading without a buffer: all of it, or for sure only the bytes begin..end of
        `spans`, int64 [n, 2], in the order of the file. Raises FileNotFoundError where the remote corpus has none."""
        here = path if spans is not None else path.with_suffix(f"{WHOLE}{path.suffix}")

        def fetch(_: str, file: IO[bytes]) -> None:
            name = path.relative_to(self.folder).as_posix()
            size = self.remote.size(name)
            file.truncate(size)
            self.remote.copy(name, [(0, size)] if spans is None else _joined(np.clip(spans, 0, size)), size, file)

        while True:
            fetched = self.fetch_once(here, fetch)
            try:
                file = here.open("rb", buffering=0)
            except FileNotFoundError:  # another process has just made room
                continue
            os.utime(file.fileno())  # room is made by the time of last use
            if fetched:
                make_room(self.folder.parent, self.most_bytes, spare=here)
            return file


def mirror_of(shard: Path) -> Mirror | None:
    """The mirror that a shard's path is in, `<mirror>/<split>/<name>.tar`; None for a shard on this machine."""
    return mirror_at(shard.parent.parent)


@lru_cache(64)
def mirror_at(folder: Path) -> Mirror | None:
    """The mirror that `folder` is; None for any other folder."""
    file = folder / ORIGIN_FILE
    if not file.is_file():
        return None
    told = json.loads(file.read_text(encoding="utf-8"))
    return Mirror(folder, told["url"], told["most_bytes"])


def fetch_index(shard: Path, files: tuple[Path, Path]) -> None:
    """Have the index of a mirrored shard here, and the columns added to it if there are any; nothing for others."""
    mirror = mirror_of(shard)
    if mirror is None or files[0].is_file():
        return
    mirror.if_there(files[1])  # first: an index that is here says that its columns were looked for
    mirror.if_there(files[0])


# --- what takes space -----------------------------------------------------------------------------------------------


def make_room(root: Path, most_bytes: int, spare: Path) -> list[Path]:
    """Remove shards of all mirrors under `root`, last used first to go, until the rest takes `most_bytes`; never
    `spare`. Returns what went. Where another process is at it, nothing is done."""
    with (root / ".room.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return []
        for left in root.glob(f"*/*/.*{_PARTIAL}"):
            if time.time() - _times(left)[0] > _STALE:
                left.unlink(missing_ok=True)
        held = sorted((*_times(path), path) for path in root.glob("*/*/*.tar"))
        total = sum(size for _, size, _ in held)
        gone = []
        for _, size, path in held:
            if total <= most_bytes:
                break
            if path != spare:
                path.unlink(missing_ok=True)
                total -= size
                gone.append(path)
        return gone


def _times(path: Path) -> tuple[float, int]:
    """When a file was last used, and the bytes that it takes on the disk."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return time.time(), 0
    return found.st_mtime, found.st_blocks * 512


# --- reading ahead --------------------------------------------------------------------------------------------------


class Ahead:
    """Does `fetch` on a thread of its own for shards that will soon be asked for. What goes wrong there is met again,
    and told, by who asks for the shard."""

    def __init__(self, fetch: Callable[[Path], object]) -> None:
        self._fetch = fetch
        self._wanted: SimpleQueue[Path] = SimpleQueue()
        threading.Thread(target=self._serve, name="shards-ahead", daemon=True).start()

    def want(self, shard: Path) -> None:
        self._wanted.put(shard)

    def _serve(self) -> None:
        while True:
            shard = self._wanted.get()
            with suppress(Exception):
                self._fetch(shard)


# --- small ----------------------------------------------------------------------------------------------------------


@contextmanager
def _alone(path: Path) -> Iterator[IO[bytes]]:
    """The file `path`, made where it is not there, held by one process at a time."""
    while True:
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(path, file):
                yield file
                return  # else whoever held it has put it in place, or dropped it


def _is_at(path: Path, file: IO[bytes]) -> bool:
    """Whether `file` is what `path` names; that may change or go at any time."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _joined(spans: np.ndarray) -> list[tuple[int, int]]:
    """Spans in order, as few as may be: what lies no further apart than `_GAP` is one."""
    joined: list[tuple[int, int]] = []
    for begin, end in spans[np.argsort(spans[:, 0])].tolist():
        if begin >= end:
            continue
        if joined and begin - joined[-1][1] <= _GAP:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return joined
