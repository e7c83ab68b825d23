"""The last step of a conversion: what was written becomes a checkpoint that says it is complete."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from checkpoints.atomic import put_in_place, sync_folder
from checkpoints.card import Card, LogitsAgreement, RoundTrip, Side, write_card
from checkpoints.card_rows import check_rows
from checkpoints.conversion import native_files, safetensors_files
from checkpoints.conversion.job import Job, Target
from checkpoints.conversion.journal import WORK, Done
from checkpoints.conversion.opened import Conversion
from checkpoints.formats.native import COMMON_FILE, FORMAT_FILE, TORCH_DIST
from checkpoints.layout import STATE_FILE, TENSORS
from checkpoints.manifest import Manifest, count_parameters, record_files, versions, write_manifest
from checkpoints.maps import describe
from checkpoints.metadata import read_metadata, tensor_records
from runtime.source_tree import commit

FOREIGN = "huggingface"
"""Folder of a native checkpoint with the files that came beside the weights at Hugging Face, as they were."""


@dataclass(frozen=True)
class Beside:
    """What a result holds beside tensors. files: text, or a file to copy, by relative path; vocabulary and origin: of a
    native manifest."""

    files: Mapping[str, str | Path] = field(default_factory=dict)
    vocabulary: Mapping[str, Any] | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)


def make_readable(conversion: Conversion, done: Sequence[Done], beside: Beside) -> None:
    """Write all but card and manifest: from here on what was written can be read again."""
    job = conversion.job
    if job.target is Target.native:
        tensors = job.folder / TENSORS
        native_files.write_index(tensors, conversion.slabs, job.backbone.layers, done)
        torch.save({}, tensors / COMMON_FILE)
        (tensors / FORMAT_FILE).write_text(json.dumps(TORCH_DIST), encoding="utf-8")
        (job.folder / STATE_FILE).write_text("{}", encoding="utf-8")
    else:
        safetensors_files.finish(job.folder, safetensors_files.layout_of(conversion))
    for name, content in beside.files.items():
        path = job.folder / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, Path):
            shutil.copyfile(content, path)
        else:
            path.write_text(content, encoding="utf-8")


def make_complete(
    conversion: Conversion,
    done: Sequence[Done],
    beside: Beside,
    round_trip: RoundTrip | None,
    logits: LogitsAgreement | None,
) -> None:
    """Write the card, and of a native checkpoint the manifest. Raises BadInput where two rules claim one tensor."""
    job = conversion.job
    rows = tuple(row for one in done for row in one.rows)
    check_rows(rows)
    topology = {key: value for key, value in job.topology.plain().items() if value is not None}
    card = Card(
        source=Side(conversion.source.format, job.source.name),
        target=Side(job.target.value, _final(job).name, topology if job.target is Target.native else {}),
        backbone=job.backbone.name or job.backbone.architecture,
        rows=rows,
        left_out=tuple(conversion.left_out),
        round_trip=round_trip,
        logits=logits,
        versions=versions(),
        commit=commit(),
    )
    write_card(job.folder, card)
    if job.target is not Target.native:
        return
    known = {f"{TENSORS}/{name}": record for one in done for name, record in one.files.items()}
    records = record_files(job.folder, known)
    tensors = tensor_records(read_metadata(job.folder / TENSORS))
    manifest = Manifest(
        step=0,
        topology=job.topology.plain(),
        tensors=tensors,
        parameters=count_parameters(tensors),
        files={name: record for name, record in records.items() if not name.startswith(f"{WORK}/")},
        vocabulary=None if beside.vocabulary is None else dict(beside.vocabulary),
        origin=dict(beside.origin),
        versions=versions(),
        backbone=describe(job.backbone),
    )
    write_manifest(job.folder, manifest)


def put(job: Job, destination: Path) -> None:
    """Give the complete result its name, without what the work needed."""
    aside = destination.with_name(f".{destination.name}.{WORK}")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(job.folder / WORK, aside)
    sync_folder(job.folder)
    put_in_place(job.folder, destination)
    shutil.rmtree(aside, ignore_errors=True)


def _final(job: Job) -> Path:
    return job.folder.with_suffix("") if job.folder.suffix == ".partial" else job.folder
