"""Native checkpoints: saved by all ranks, complete or not there, loaded on any topology.

    <folder>/step-00000100/
        manifest.json           written last; sizes and hashes of all other files
        state.json              loader state, tokens seen and the like
        tensors/                Megatron-Core's torch_dist files: parameters and optimiser state
        config.yaml, vocabulary.json, tokenizer.json, ...   whatever `texts` holds

A save is made in `step-00000100.partial` and takes its name when the manifest is in. Which checkpoint is the newest
is found by looking; there is no pointer that could disagree with what is there.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from checkpoints.agreement import on_first_rank, together
from checkpoints.atomic import PARTIAL, REMOVED, partial_of, put_in_place, remove, sync_folder
from checkpoints.manifest import (
    MANIFEST_FILE,
    FileRecord,
    Manifest,
    count_parameters,
    problems,
    read_manifest,
    record_file,
    record_files,
    versions,
    write_manifest,
)
from checkpoints.metadata import read_metadata, tensor_records
from checkpoints.sharded import read_sharded, write_sharded
from runtime.exits import BadInput

TENSORS = "tensors"
STATE_FILE = "state.json"
_STEP = re.compile(r"step-(\d{8,})")


def step_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"step-{step:08d}"


def save(
    folder: Path,
    step: int,
    sharded_state: dict[str, Any],
    *,
    state: Mapping[str, Any],
    topology: Mapping[str, Any],
    vocabulary: Mapping[str, Any] | None = None,
    texts: Mapping[str, str] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Path:
    """Save a checkpoint; every rank of the default process group calls this with its part.

    `sharded_state` is a Megatron-Core sharded state dict, of modules and optimisers alike; what is not sharded in it
    must be equal on all ranks and plain data. `state` (rank 0's counts) becomes state.json, `texts` files by
    name. An older checkpoint of the same step is replaced. Returns the checkpoint's folder.

    Raises BadInput on all ranks, with one line, if the disk is full or fails anywhere; then no folder looks
    complete, what was written is removed, and earlier checkpoints are as they were.
    """
    final = step_folder(folder, step)
    partial = partial_of(final)
    doing = f"cannot save checkpoint {final}"
    try:
        on_first_rank(lambda: _start(partial, state, texts or {}), doing)
        write_sharded(partial / TENSORS, sharded_state, doing)
        hashes = _gather(together(lambda: _own_files(partial / TENSORS), doing))

        def finish() -> None:
            tensors = tensor_records(read_metadata(partial / TENSORS))
            manifest = Manifest(
                step=step,
                topology=dict(topology),
                tensors=tensors,
                parameters=count_parameters(tensors),
                files=record_files(partial, {f"{TENSORS}/{name}": record for name, record in hashes.items()}),
                vocabulary=None if vocabulary is None else dict(vocabulary),
                origin=dict(origin or {}),
                versions=versions(),
            )
            finish_checkpoint(partial, final, manifest)

        on_first_rank(finish, doing)
    except BaseException:
        if dist.get_rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    return final


def finish_checkpoint(partial: Path, final: Path, manifest: Manifest) -> None:
    """Mark what `partial` holds complete and give it its name."""
    write_manifest(partial, manifest)
    sync_folder(partial)
    put_in_place(partial, final)


def load(
    checkpoint: Path, sharded_state: dict[str, Any], optional: Callable[[str], bool] = lambda _: False
) -> dict[str, Any]:
    """Fill a sharded state dict from a checkpoint; every rank of the default process group calls this.

    Works on any topology. A part of the checkpoint that `sharded_state` does not name, such as optimiser state, is
    left alone; tensors with an `optional` name that the checkpoint lacks stay as they are. Returns the state dict with
    plain tensors and objects. Raises BadInput on all ranks if the checkpoint is not complete, is not safe to read, or
    does not fit; file contents are for `newest_usable` to verify.
    """
    together(lambda: read_manifest(checkpoint), "cannot load")
    return read_sharded(checkpoint / TENSORS, sharded_state, optional)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The `state` that was saved with a checkpoint."""
    try:
        return json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{checkpoint / STATE_FILE}: cannot be read ({error})") from error


def complete_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run that say they are complete, oldest first. Their contents are not verified."""
    return [path for path in _step_folders(folder) if (path / MANIFEST_FILE).is_file()]


def newest_usable(folder: Path, log: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose files are all as they were written, or None.

    Each newer one that is not is refused by name in one line to `log`. Reads every byte of the answer: call it on
    one rank and broadcast.
    """
    for path in reversed(_step_folders(folder)):
        found = problems(path)
        if not found:
            return path
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        log(f"refused checkpoint {path.name}: {found[0]}{more}")
    return None


def prune(folder: Path, keep: int) -> list[Path]:
    """Remove all complete checkpoints but the newest `keep` (0 keeps all), and what unfinished saves left.

    For one rank, while no save is under way. Returns what was removed.
    """
    checkpoints = complete_checkpoints(folder)
    removed = checkpoints[:-keep] if keep else []
    for path in removed:
        remove(path)
    left = [path for path in folder.glob("step-*") if path.suffix in (PARTIAL, REMOVED)] if folder.is_dir() else []
    for path in left:
        shutil.rmtree(path, ignore_errors=True)
    return removed


def _step_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    steps = [(int(match[1]), path) for path in folder.iterdir() if (match := _STEP.fullmatch(path.name))]
    return [path for _, path in sorted(steps) if path.is_dir() and not path.is_symlink()]


def _start(partial: Path, state: Mapping[str, Any], texts: Mapping[str, str]) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    (partial / TENSORS).mkdir(parents=True)
    (partial / STATE_FILE).write_text(json.dumps(state, indent=1), encoding="utf-8")
    for name, text in texts.items():
        (partial / name).write_text(text, encoding="utf-8")


def _own_files(folder: Path) -> dict[str, FileRecord]:
    """Records of the files that this rank wrote."""
    files = sorted(folder.glob(f"__{dist.get_rank()}_*.distcp"))
    return {path.name: record_file(path) for path in files}


def _gather(records: dict[str, FileRecord]) -> dict[str, FileRecord]:
    """Every rank's records."""
    parts = [records] * dist.get_world_size()
    if len(parts) > 1:
        dist.all_gather_object(parts, records)
    return {name: record for part in parts for name, record in part.items()}
