"""Looking into native checkpoints: what is in one, and whether it is whole."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import torch

from checkpoints.formats.native import COMMON_FILE
from checkpoints.manifest import MODEL_PREFIX, Manifest, TensorRecord, count_parameters, problems, read_manifest
from checkpoints.metadata import check_objects, check_pieces, read_metadata, tensor_records
from checkpoints.store import TENSORS, complete_checkpoints
from checkpoints.torch_file import load_plain
from runtime.exits import BadInput

_RUN_CHECKPOINTS = "checkpoints"


def describe(folder: Path) -> str:
    """Step, topology, origin and tensors of a checkpoint, or of the newest one of a run, as lines of text."""
    checkpoint = _all(folder)[-1]
    manifest = read_manifest(checkpoint)
    topology = ", ".join(f"{key} {value}" for key, value in manifest.topology.items() if value not in (None, False))
    lines = [
        f"{checkpoint}",
        f"step {manifest.step}; {manifest.parameters:,} parameters; "
        f"{sum(record.size for record in manifest.files.values()):,} bytes in {len(manifest.files)} files",
        f"saved on: {topology or 'no topology (converted)'}",
        "written by: " + ", ".join(f"{package} {version}" for package, version in manifest.versions.items()),
        *(f"origin, {key}: {value}" for key, value in manifest.origin.items()),
        *_vocabulary_lines(manifest),
    ]
    for owner, names in groupby(sorted(manifest.tensors, key=_owner_first), key=_owner):
        lines += ["", owner, *_tree({name.removeprefix(owner + "."): manifest.tensors[name] for name in names})]
    return "\n".join(lines)


def verify(folder: Path) -> list[str]:
    """Problems of a checkpoint, or of every complete one of a run: one line each, empty if there are none.

    Every file is read and hashed, the index is read as untrusted, and it, the manifest's tensors and what the files say
    of their pieces are compared.
    """
    try:
        return [line for checkpoint in _all(folder) for line in _problems(checkpoint)]
    except BadInput as error:
        return [str(error)]


def _problems(checkpoint: Path) -> list[str]:
    found = problems(checkpoint)
    if not found:
        try:
            index = read_metadata(checkpoint / TENSORS)
            check_objects(checkpoint / TENSORS, index)
            check_pieces(checkpoint / TENSORS, index)
            load_plain(checkpoint / TENSORS / COMMON_FILE, mmap=False)
            manifest = read_manifest(checkpoint)
            if tensor_records(index) != manifest.tensors:
                found = ["its index and its manifest name different tensors"]
            elif count_parameters(manifest.tensors) != manifest.parameters:
                found = [f"its manifest counts {manifest.parameters:,} parameters, its tensors have others"]
            elif unlisted := _unlisted(checkpoint, manifest):
                found = [f"{unlisted[0]}: not in the manifest ({len(unlisted)} such)"]
        except BadInput as error:
            found = [str(error)]
    return [f"{checkpoint}: {line}" for line in found]


def _unlisted(checkpoint: Path, manifest: Manifest) -> list[str]:
    """Files that a load would read and the manifest does not vouch for."""
    held = (path.relative_to(checkpoint).as_posix() for path in (checkpoint / TENSORS).iterdir())
    return sorted(name for name in held if name not in manifest.files)


def _all(folder: Path) -> list[Path]:
    """The folder itself if it looks like a checkpoint, else the complete checkpoints of the run it is."""
    for place in (folder, folder / _RUN_CHECKPOINTS):
        if checkpoints := complete_checkpoints(place):
            return checkpoints
    return [folder]


def _owner(name: str) -> str:
    return name.split(".")[0]


def _owner_first(name: str) -> tuple[bool, str]:
    return not name.startswith(MODEL_PREFIX), name


def _tree(tensors: dict[str, TensorRecord]) -> list[str]:
    """Names as an indented tree, leaves with shape, dtype and elements."""
    lines: list[str] = []
    path: list[str] = []
    for name, tensor in tensors.items():
        *parents, leaf = name.split(".")
        shared = 0
        while shared < min(len(path), len(parents)) and path[shared] == parents[shared]:
            shared += 1
        lines += [f"{'  ' * (depth + 1)}{parents[depth]}" for depth in range(shared, len(parents))]
        path = parents
        label = f"{'  ' * (len(parents) + 1)}{leaf}"
        lines.append(f"{label:<40} {list(tensor.shape)!s:<20} {tensor.dtype} {torch.Size(tensor.shape).numel():,}")
    return lines


def _vocabulary_lines(manifest: Manifest) -> list[str]:
    ranges = (manifest.vocabulary or {}).get("ranges", {})
    return ["vocabulary: " + ", ".join(f"{name} {start}..{end - 1}" for name, (start, end) in ranges.items())] * bool(
        ranges
    )
