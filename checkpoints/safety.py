"""Opening what came from outside: plain files of this folder alone, JSON without tricks, and no code.

Whoever reads a file that somebody else made comes through here, so that a folder cannot make a reader hang, leave the
folder, or run something. All refusals are `BadInput`, one line that names the file.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from runtime.exits import BadInput

JSON_LIMIT = 100_000_000  # bytes; indexes of the largest published models are a tenth of it
_BLOBS, _SNAPSHOTS = "blobs", "snapshots"  # of the Hugging Face hub's cache
_KINDS = {stat.S_IFIFO: "a FIFO", stat.S_IFDIR: "a folder", stat.S_IFSOCK: "a socket"}


def quoted(text: object, most: int = 80) -> str:
    """A piece of foreign text for a message: on one line, escaped, and not long."""
    shown = ascii(text)
    return shown if len(shown) <= most else f"{shown[:most]}... ({len(shown)} characters)"


def is_plain_name(name: object) -> bool:
    """Whether this names a file in a folder itself: no way to another folder, nothing unprintable."""
    return (
        isinstance(name, str)
        and 0 < len(os.fsencode(name) if name.isprintable() else b"") <= 255
        and not set(name) & {"/", "\\"}
        and name not in (".", "..")
    )


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading that is a regular one and no symbolic link, but for the hub's own links into its blobs.

    Raises BadInput where it is missing, unreadable, a link, a folder, a FIFO or a device; never waits for a writer.
    """
    try:
        named = _hub_blob(path) or path
        descriptor = os.open(named, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise BadInput(_why_not(path, error)) from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise BadInput(f"{path}: {_KINDS.get(stat.S_IFMT(mode), 'a device')}, not a file")
    os.set_blocking(descriptor, True)
    return os.fdopen(descriptor, "rb")


def size_of(path: Path) -> int:
    """Bytes of a regular file; raises as `open_regular` does."""
    with open_regular(path) as stream:
        return os.fstat(stream.fileno()).st_size


def read_json_object(path: Path, limit: int = JSON_LIMIT, *, constants: bool = False) -> dict[str, Any]:
    """The JSON object that a file of at most `limit` bytes holds; see `parse_object`."""
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > limit:
            raise BadInput(f"{path}: {size:,} bytes of JSON; at most {limit:,} are read")
        try:
            content = stream.read()
        except OSError as error:
            raise BadInput(f"{path}: cannot be read ({error.strerror})") from error
    return parse_object(content, str(path), constants=constants)


def parse_object(content: bytes, where: str, *, constants: bool = False) -> dict[str, Any]:
    """The JSON object in `content`. Raises BadInput, beginning with `where`, for what is no UTF-8, no JSON or no
    object, names a key twice, nests too deep, or, unless `constants` are allowed, holds NaN or Infinity, which are not
    JSON."""

    def constant(word: str) -> float:
        if constants:
            return float(word)
        raise BadInput(f"{where}: cannot be read as JSON ({word} is no JSON value)")

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for index, key in enumerate(keys) if key in keys[:index])
            raise BadInput(f"{where}: names {quoted(twice)} twice")
        return found

    try:
        parsed = json.loads(content.decode("utf-8"), object_pairs_hook=distinct, parse_constant=constant)
    except UnicodeDecodeError as error:
        raise BadInput(f"{where}: cannot be read as JSON (not UTF-8 at byte {error.start})") from error
    except RecursionError as error:
        raise BadInput(f"{where}: cannot be read as JSON (nested too deep)") from error
    except ValueError as error:
        raise BadInput(f"{where}: cannot be read as JSON ({error})") from error
    if not isinstance(parsed, dict):
        raise BadInput(f"{where}: holds no JSON object")
    return parsed


def _hub_blob(path: Path) -> Path | None:
    """Where a file of a hub snapshot really is: the hub keeps `snapshots/<commit>/<name>` as links into `blobs`."""
    if not path.is_symlink():
        return None
    folder = path.absolute().parent
    blobs = folder.parent.parent / _BLOBS
    target = folder / os.readlink(path)
    inside = os.path.normpath(target.parent) == os.path.normpath(blobs) and folder.parent.name == _SNAPSHOTS
    return Path(os.path.normpath(target)) if inside else None


def _why_not(path: Path, error: OSError | ValueError) -> str:
    try:
        if path.is_symlink():
            return f"{path}: a symbolic link; nothing is read through one (cp -rL copies what it leads to)"
    except (OSError, ValueError):
        pass
    if isinstance(error, FileNotFoundError):
        return f"{path}: missing"
    return f"{path}: cannot be read ({error.strerror if isinstance(error, OSError) else error})"
