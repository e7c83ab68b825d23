"""Looking into checkpoints: what is in one, of any format, and whether a native one is whole."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path

from checkpoints.atomic import PARTIAL
from checkpoints.dtypes import name_of
from checkpoints.formats.native import COMMON_FILE
from checkpoints.formats.source import TrainedSource, detect, open_source
from checkpoints.layout import TENSORS
from checkpoints.manifest import (
    MANIFEST_FILE,
    MODEL_PREFIX,
    Manifest,
    TensorRecord,
    count_parameters,
    problems,
    read_manifest,
)
from checkpoints.metadata import check_objects, check_pieces, read_metadata, tensor_records
from checkpoints.readers import reading
from checkpoints.tools.opening import checkpoints_of
from checkpoints.torch_file import load_plain
from checkpoints.tree import nbytes_of, tree
from runtime.exits import BadInput


def describe(path: Path) -> str:
    """What a checkpoint holds, as lines of text: a native one or the newest of a run, or any other format that is read.

    Names as a tree, with shapes, dtypes, elements and bytes, and what every module and all of it come to; of a native
    one step, topology and origin too, and sums of the optimiser's state by kind. No tensor is read.
    """
    checkpoint = checkpoints_of(path)[-1]
    if (checkpoint / MANIFEST_FILE).is_file():
        return "\n".join(_native_lines(checkpoint))
    if not path.exists() or (path.is_dir() and (path / TENSORS).is_dir()):
        read_manifest(path)  # says what is missing
    return "\n".join(_foreign_lines(path))


def _native_lines(checkpoint: Path) -> Iterator[str]:
    with reading(checkpoint):
        manifest = read_manifest(checkpoint)
        topology = ", ".join(f"{key} {value}" for key, value in manifest.topology.items() if value not in (None, False))
        yield f"{checkpoint}"
        size = sum(record.size for record in manifest.files.values())
        yield f"step {manifest.step}; {manifest.parameters:,} parameters; {size:,} bytes in {len(manifest.files)} files"
        yield f"saved on: {topology or 'no topology (converted)'}"
        yield "written by: " + ", ".join(f"{package} {version}" for package, version in manifest.versions.items())
        if manifest.backbone:
            yield f"backbone: {manifest.backbone.get('name')}, architecture {manifest.backbone.get('architecture')}"
        yield from (f"origin, {key}: {value}" for key, value in manifest.origin.items())
        yield from _vocabulary_lines(manifest)
    yield ""
    kinds: dict[str, dict[str, TensorRecord]] = {}
    for name, record in manifest.tensors.items():
        kind = "" if name.startswith(MODEL_PREFIX) else name.partition(f".{MODEL_PREFIX}")[0]
        kinds.setdefault(kind, {})[name] = record
    yield from tree(kinds.get("", {}))
    yield ""
    yield _sum("parameters", list(kinds.pop("", {}).values()))
    yield from (_sum(kind, list(records.values())) for kind, records in sorted(kinds.items()))
    if kinds:
        yield _sum("optimiser state", [record for records in kinds.values() for record in records.values()])


def _foreign_lines(path: Path) -> Iterator[str]:
    kind, place = detect(path)
    source = open_source(path)
    records = {}
    for name in sorted(source.names):
        shape, dtype = source.shape_and_dtype(name)
        records[name] = TensorRecord(shape, name_of(dtype))
    yield f"{place}"
    yield kind.value
    if isinstance(source, TrainedSource):
        yield f"step {source.step}; optimiser state: {', '.join(source.kinds) or 'none'}"
    yield ""
    yield from tree(records)
    yield ""
    yield _sum("parameters", list(records.values()))


def _sum(what: str, records: list[TensorRecord]) -> str:
    elements = sum(prod(record.shape) for record in records)
    dtypes = ", ".join(sorted({record.dtype for record in records}))
    return f"{what}: {elements:,} in {len(records)} tensors, {sum(map(nbytes_of, records)):,} bytes" + (
        f" ({dtypes})" if dtypes else ""
    )


def verify(folder: Path) -> list[str]:
    """Problems of a checkpoint, or of every complete one of a run: one line each, empty if there are none.

    Every file is read and hashed, the index is read as untrusted, and it, the manifest's tensors and what the files say
    of their pieces are compared.
    """
    try:
        return [line for checkpoint in checkpoints_of(folder) for line in _problems(checkpoint)]
    except BadInput as error:
        return [str(error)]


def _problems(checkpoint: Path) -> list[str]:
    if checkpoint.name.endswith(PARTIAL):
        return [f"{checkpoint}: unfinished: its name says that whatever makes it has not ended"]
    if not checkpoint.is_dir():
        return [f"{checkpoint}: {line}" for line in problems(checkpoint)]
    with reading(checkpoint):
        return _problems_of_what_stays(checkpoint)


def _problems_of_what_stays(checkpoint: Path) -> list[str]:
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


def _vocabulary_lines(manifest: Manifest) -> list[str]:
    ranges = (manifest.vocabulary or {}).get("ranges", {})
    return ["vocabulary: " + ", ".join(f"{name} {start}..{end - 1}" for name, (start, end) in ranges.items())] * bool(
        ranges
    )
