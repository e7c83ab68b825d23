"""From what a user asks for to a job: what the source is, what it is to become, and what comes along with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from checkpoints.atomic import partial_of
from checkpoints.card import CARD_FILE, CARD_PAGE
from checkpoints.conversion.finishing import FOREIGN, Beside
from checkpoints.conversion.job import Job, Rows, Target
from checkpoints.conversion.reading import is_huggingface, open_slabs
from checkpoints.conversion.shards import topology_of
from checkpoints.formats.huggingface import CONFIG_FILE, json_text
from checkpoints.formats.huggingface_config import read_config
from checkpoints.formats.safetensors_folder import INDEX_FILE
from checkpoints.formats.source import Format, detect
from checkpoints.layout import STATE_FILE
from checkpoints.manifest import MANIFEST_FILE, Manifest, read_manifest
from checkpoints.maps import described, differences, of_backbone, of_config
from checkpoints.safety import read_json_object, size_of
from checkpoints.vocabulary_surgery import describe_growth, plan_rows, used_ids
from configs.schema import BackboneConfig, NewRows, ParallelConfig
from runtime.exits import BadInput

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".incomplete")
_LARGEST = 1 << 30  # bytes of a file that comes along with weights
_OURS = (MANIFEST_FILE, STATE_FILE, CARD_FILE, CARD_PAGE)


@dataclass(frozen=True)
class Wanted:
    """What to make of a source. target: None: native of anything else, Hugging Face's of native. backbone: None: what
    the source says of itself. dtype: torch's name; None: each tensor keeps its own. rows: of the vocabulary; None: as
    many as there are; the first `used` are kept, None: those in use where the source says so, else all. nonfinite:
    values that are NaN or infinite are no error."""

    target: Target | None = None
    backbone: BackboneConfig | None = None
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    dtype: str | None = None
    rows: int | None = None
    used: int | None = None
    seed: int = 0
    new_rows: NewRows = NewRows.covariance
    shard_bytes: int = 5 * 10**9
    nonfinite: bool = False


def plan_job(source: Path, destination: Path, wanted: Wanted) -> tuple[Job, Beside]:
    """The job, and what its result holds beside tensors. Raises BadInput where the source cannot become that."""
    foreign = is_huggingface(source)
    kind, place = (Format.huggingface, source) if foreign else detect(source)
    manifest = read_manifest(place) if kind is Format.native else None
    backbone = _backbone(place, kind, manifest, wanted.backbone)
    target = wanted.target or (Target.huggingface if kind is Format.native else Target.native)
    slabs = open_slabs(place, backbone)
    slabs.left_out()
    embedding = next((rule for rule in slabs.rules if rule.vocabulary), None)
    held = slabs.shape_and_dtype(embedding, None)[0][0] if embedding else 0
    rows = _rows(wanted, held, manifest)
    topology = topology_of(backbone, wanted.parallel, rows.rows if rows else held)
    job = Job(
        place,
        partial_of(destination),
        target,
        backbone,
        topology,
        wanted.dtype,
        rows,
        wanted.shard_bytes,
        nonfinite=wanted.nonfinite,
    )
    files = _files(job, kind, rows.rows if rows else held)
    origin: dict[str, Any] = {**(manifest.origin if manifest else {}), kind.name: place.name}
    if rows is not None:
        origin |= describe_growth(rows.kept, rows.rows, rows.seed, rows.new_rows)
    return job, Beside(files, manifest.vocabulary if manifest else None, origin)


def _backbone(place: Path, kind: Format, manifest: Manifest | None, given: BackboneConfig | None) -> BackboneConfig:
    if kind is Format.huggingface:
        config = read_config(place / CONFIG_FILE)
        if given is None:
            return replace(of_config(config).read_config(config), name=place.name)
        if found := differences(given, config):
            raise BadInput(f"{place} is another model: {'; '.join(found)}")
        return given
    if given is not None:
        return given
    if manifest is not None and manifest.backbone is not None:
        return described(manifest.backbone)
    raise BadInput(f"{place}: a {kind.value} that does not say its backbone; give it, as backbone=NAME")


def _rows(wanted: Wanted, held: int, manifest: Manifest | None) -> Rows | None:
    if wanted.rows is None:
        return None
    used = wanted.used
    if used is None:
        used = used_ids(manifest.vocabulary) if manifest and manifest.vocabulary else min(held, wanted.rows)
    plan_rows(used, wanted.rows, held)  # for its refusals
    return Rows(used, wanted.rows, wanted.seed, wanted.new_rows)


# --- what comes along -----------------------------------------------------------------------------------------------


def _files(job: Job, kind: Format, rows: int) -> dict[str, str | Path]:
    """Files beside the tensors: those of a Hugging Face folder as they are, kept in `huggingface/` of a native
    checkpoint; config.json is written anew where it would no longer be true."""
    files: dict[str, str | Path] = {}
    if job.target is Target.safetensors:
        return files
    if kind is Format.huggingface:
        files = {path.name: path for path in _beside_weights(job.source)}
    elif kind is Format.native:
        if (job.source / FOREIGN).is_dir():
            files = {path.name: path for path in _beside_weights(job.source / FOREIGN)}
        if job.target is Target.native:
            own = [path for path in sorted(job.source.iterdir()) if path.is_file() and path.name not in _OURS]
            return {path.name: path for path in own} | {f"{FOREIGN}/{name}": path for name, path in files.items()}
    if job.target is Target.native:
        return {f"{FOREIGN}/{name}": path for name, path in files.items()}
    return files | _config(job, files.get(CONFIG_FILE), rows)


def _config(job: Job, carried: str | Path | None, rows: int) -> dict[str, str | Path]:
    """config.json, where the carried one is missing or no longer true."""
    architecture = of_backbone(job.backbone)
    if carried is None:
        dtype = {} if job.dtype is None else {"dtype": job.dtype}
        written = {**architecture.write_config(job.backbone), architecture.vocabulary_key: rows, **dtype}
        return {CONFIG_FILE: json_text(written)}
    assert isinstance(carried, Path)
    config = read_json_object(carried)
    changed = dict(config)
    if rows:
        changed[architecture.vocabulary_key] = rows
    if job.dtype is not None:
        changed["torch_dtype" if "torch_dtype" in config else "dtype"] = job.dtype
    return {} if changed == config else {CONFIG_FILE: json.dumps(changed, indent=2) + "\n"}


def _beside_weights(folder: Path) -> Sequence[Path]:
    """Plain files of a folder that are no weights. Raises BadInput for one that leads elsewhere or is far too large."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() or path.name.endswith((*_WEIGHTS, ".index.json")) or path.name in (*_OURS, INDEX_FILE):
            continue
        if (size := size_of(path)) > _LARGEST:
            raise BadInput(f"{path}: {size / 1e9:.2f} GB beside the weights; move it away, it is no part of a model")
        found.append(path)
    return found
