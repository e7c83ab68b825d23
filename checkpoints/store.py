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

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from checkpoints.agreement import gather, together
from checkpoints.layout import STATE_FILE, TENSORS, complete_checkpoints, step_folder, step_folders
from checkpoints.manifest import FileRecord, problem_of, problems, read_manifest
from checkpoints.readers import reading
from checkpoints.safety import read_json_object
from checkpoints.saving import Contents, Saver
from checkpoints.sharded import read_sharded

__all__ = [
    "STATE_FILE",
    "TENSORS",
    "complete_checkpoints",
    "load",
    "newest_usable",
    "newest_usable_together",
    "read_state",
    "save",
    "step_folder",
]


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
    """Save a single checkpoint; every rank of the default process group calls this with its part.

    See `checkpoints.saving`: `Saver.save` for what is raised, `Contents` for what is kept beside tensors.
    """
    contents = Contents(state, topology, vocabulary, texts or {}, origin or {})
    return Saver(folder).save(step, sharded_state, contents)


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
    with reading(checkpoint):
        return read_sharded(checkpoint / TENSORS, sharded_state, optional)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The `state` that was saved with a checkpoint."""
    return read_json_object(checkpoint / STATE_FILE, constants=True)


def newest_usable(folder: Path, log: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose files are all as they were written, or None.

    Each newer one that is not is refused by name in one line to `log`. Reads every byte of the answer: call it on
    one rank and broadcast.
    """
    for path in reversed(step_folders(folder)):
        found = problems(path)
        if not found:
            return path
        log(_refusal(path, found))
    return None


def newest_usable_together(folder: Path, log: Callable[[str], None], contents: bool = True) -> Path | None:
    """`newest_usable`, asked by every rank of the default process group and answered the same on all.

    Every rank hashes a share of the files. `contents` False: only their sizes are looked at, which misses a damaged
    byte and takes no time.
    """
    for path in gather(list(reversed(step_folders(folder))))[0]:
        found, files = gather(_looked_at(path) if dist.get_rank() == 0 else ([], {}))[0]
        if contents and not found:
            mine = _share(files, dist.get_rank(), dist.get_world_size())
            found = [line for name in mine if (line := problem_of(path, name, files[name])) is not None]
            found = [line for part in gather(found) for line in part]
        if not found:
            return path
        log(_refusal(path, found))
    return None


def _looked_at(checkpoint: Path) -> tuple[list[str], dict[str, FileRecord]]:
    """What is wrong with a checkpoint by its manifest and its files' sizes; the files where nothing is."""
    found = problems(checkpoint, contents=False)
    return found, {} if found else read_manifest(checkpoint).files


def _share(files: Mapping[str, FileRecord], rank: int, world: int) -> list[str]:
    """The files that `rank` of `world` reads: largest first, each to who has the least so far."""
    load = [0] * world
    mine = []
    for name in sorted(files, key=lambda name: (-files[name].size, name)):
        taker = load.index(min(load))
        load[taker] += files[name].size
        if taker == rank:
            mine.append(name)
    return mine


def _refusal(checkpoint: Path, found: list[str]) -> str:
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return f"refused checkpoint {checkpoint.name}: {found[0]}{more}"
