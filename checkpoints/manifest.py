"""The manifest of a native checkpoint: written last, it marks the checkpoint complete and says what is in it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

import xxhash

from checkpoints.atomic import write_file
from checkpoints.safety import open_regular, quoted, read_json_object
from runtime.exits import BadInput

MANIFEST_FILE = "manifest.json"
FORMAT = 1
MODEL_PREFIX = "model."
"""What the native name of a model parameter starts with; optimiser state has other names."""

_BLOCK = 1 << 20
_VERSIONED = ("torch", "megatron-core", "megaphone")


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and xxh3-64 (hexadecimal) of one file."""

    size: int
    xxh3: str


@dataclass(frozen=True)
class TensorRecord:
    """Global shape and dtype (torch's name without the package, such as "float32") of one saved tensor."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself.

    `files` is keyed by path relative to the checkpoint, with forward slashes. `topology` is the one it was saved on;
    it loads on any. `vocabulary` is the description that the vocabulary gives of itself. `origin` says where
    converted weights came from and how new vocabulary rows were made. `backbone` is the model's BackboneConfig as
    `checkpoints.maps.describe` gives it, `described` there reads it; None: written by a version that did not say.
    """

    step: int
    topology: dict[str, Any]
    tensors: dict[str, TensorRecord]
    parameters: int
    files: dict[str, FileRecord]
    vocabulary: dict[str, Any] | None = None
    origin: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    backbone: dict[str, Any] | None = None
    format: int = FORMAT


def versions() -> dict[str, str]:
    """Versions of what wrote the checkpoint."""
    found = {"python": platform.python_version()}
    for package in _VERSIONED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def count_parameters(tensors: Mapping[str, TensorRecord]) -> int:
    """Elements of all model parameters, optimiser state aside."""
    total = 0
    for name, tensor in tensors.items():
        if name.startswith(MODEL_PREFIX):
            elements = 1
            for length in tensor.shape:
                elements *= length
            total += elements
    return total


def record_file(path: Path) -> FileRecord:
    """Size and hash of a regular file, read in blocks. Raises BadInput where it is none."""
    digest = xxhash.xxh3_64()
    size = 0
    block = memoryview(bytearray(_BLOCK))
    with open_regular(path) as stream:
        while count := stream.readinto(block):  # type: ignore[attr-defined]
            digest.update(block[:count])
            size += count
    return FileRecord(size, digest.hexdigest())


def record_files(folder: Path, known: Mapping[str, FileRecord]) -> dict[str, FileRecord]:
    """Records of every file under `folder`; those in `known` are not read again."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name: known.get(name) or record_file(folder / name) for name in names if name != MANIFEST_FILE}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest in one step; the checkpoint is complete from then on."""
    write_file(folder / MANIFEST_FILE, json.dumps(asdict(manifest), indent=1))


def read_manifest(folder: Path) -> Manifest:
    """Read a manifest. Raises BadInput if there is none (the save did not finish) or it is not one of ours."""
    path = folder / MANIFEST_FILE
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such checkpoint folder")
    if path.is_symlink() or not path.is_file():
        raise BadInput(f"{folder}: no {MANIFEST_FILE}: the save did not finish, or this is no native checkpoint")
    written = read_json_object(path)
    try:
        if written["format"] != FORMAT:
            raise BadInput(f"{path}: format {quoted(written['format'])}; this version reads format {FORMAT}")
        written["files"] = {name: FileRecord(**record) for name, record in written["files"].items()}
        written["tensors"] = {
            name: TensorRecord(tuple(record["shape"]), record["dtype"]) for name, record in written["tensors"].items()
        }
        manifest = Manifest(**written)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadInput(f"{path}: damaged ({type(error).__name__}: {' '.join(str(error).split())[:200]})") from error
    if wrong := _wrong_types(manifest):
        raise BadInput(f"{path}: damaged ({wrong})")
    for name in manifest.files:
        if not is_inside(name):
            raise BadInput(f"{path}: names a file outside the checkpoint: {quoted(name)}")
    return manifest


def _wrong_types(manifest: Manifest) -> str | None:
    """What of a manifest from elsewhere has another type than `Manifest` says, None if nothing has."""
    for key in ("topology", "origin", "versions"):
        if not isinstance(getattr(manifest, key), dict):
            return f"its {key} is no object"
    for key in ("step", "parameters"):
        if not _is_count(getattr(manifest, key)):
            return f"its {key} is {quoted(getattr(manifest, key))}"
    for name, record in manifest.files.items():
        if not _is_count(record.size) or not isinstance(record.xxh3, str):
            return f"{quoted(name)} has no size and hash"
    for name, tensor in manifest.tensors.items():
        if not name.isprintable() or not all(map(_is_count, tensor.shape)) or not isinstance(tensor.dtype, str):
            return f"{quoted(name)} has an impossible name, shape or dtype"
    vocabulary: Any = manifest.vocabulary
    if vocabulary is not None and not isinstance(vocabulary, dict):
        return "its vocabulary is no object"
    ranges = (vocabulary or {}).get("ranges", {})
    if not isinstance(ranges, dict) or not all(
        isinstance(ends, list) and len(ends) == 2 and all(map(_is_count, ends)) for ends in ranges.values()
    ):
        return "its vocabulary's ranges are not a first and a last id each"
    return None


def _is_count(number: Any) -> bool:
    return type(number) is int and 0 <= number < 1 << 62


def is_inside(name: str) -> bool:
    """Whether a relative path of a checkpoint stays inside it, by its words alone."""
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and ".." not in parts and "\\" not in name and "\0" not in name


def problems(folder: Path, contents: bool = True) -> list[str]:
    """What is wrong with a checkpoint, one line each, empty if nothing; `contents`: read and hash every file."""
    try:
        manifest = read_manifest(folder)
    except (BadInput, OSError) as error:
        return [str(error)]
    found = [line for name, record in manifest.files.items() if (line := problem_of(folder, name, record, contents))]
    return found + [f"{name}: a symbolic link" for name in _links(folder, manifest.files)]


def problem_of(folder: Path, name: str, record: FileRecord, contents: bool = True) -> str | None:
    """What is wrong with one file of a checkpoint, in one line; None if nothing."""
    path = folder / name
    try:
        if path.is_symlink():
            return None  # reported once, as a link
        size = os.stat(path).st_size
        if size != record.size:
            return f"{name}: {size} bytes, {record.size} were written"
        if contents and record_file(path).xxh3 != record.xxh3:
            return f"{name}: its contents changed since it was written"
    except BadInput as error:
        return f"{name}: {str(error).removeprefix(f'{path}: ')}"
    except FileNotFoundError:
        return f"{name}: missing"
    except OSError as error:
        return f"{name}: cannot be read ({error.strerror})"
    return None


def _links(folder: Path, names: Iterable[str]) -> list[str]:
    """Files, and folders on the way to them, that are symbolic links: nothing is read through one."""
    steps = {PurePosixPath(name) for name in names}
    steps |= {parent for step in steps for parent in step.parents if parent.parts}
    return sorted(str(step) for step in steps if (folder / step).is_symlink())
