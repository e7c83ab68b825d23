"""Saving checkpoints: by all ranks, one at a time, while training waits or in the background.

A save has two halves, each done by a worker of its own so that it can be in the background: every rank *writes* its
pieces, then rank 0 *commits*: index, manifest, and the rename by which the checkpoint appears. Between and after them
all ranks agree on how it went. In the background the worker is a thread: it dies with its rank, so nothing writes on
into a folder that a restarted run works in, and its errors are this process's own. Copying, writing, hashing and
syncing release the interpreter's lock.

A worker in the background first copies what it is to write into host memory, and training waits for no more than that
copy, and no sooner than it has to: the tensors of a `begin` may be the live ones, which change in the next update of
the parameters. Until then, during the next step's data, forward and backward pass, the copy runs beside; `settle` waits
for its end.
"""

from __future__ import annotations

import io
import json
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata

from checkpoints.agreement import gather, highest, on_first_rank, together
from checkpoints.atomic import partial_of, put_in_place, sync_folder
from checkpoints.formats.native import COMMON_FILE, FORMAT_FILE, TORCH_DIST
from checkpoints.layout import STATE_FILE, TENSORS, step_folder
from checkpoints.manifest import Manifest, count_parameters, record_files, versions, write_manifest
from checkpoints.metadata import tensor_records
from checkpoints.pieces import Plan, pieces_of
from checkpoints.sharded import without_extra_state
from checkpoints.staging import Staging, beside_training
from checkpoints.writing import Abandoned, Written, write_pieces


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds beside tensors: `state` becomes state.json, `texts` files by name; the rest goes into
    the manifest. Rank 0's counts."""

    state: Mapping[str, Any]
    topology: Mapping[str, Any]
    vocabulary: Mapping[str, Any] | None = None
    texts: Mapping[str, str] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)
    backbone: Mapping[str, Any] | None = None


class Saver:
    """Saves into one folder. Every rank of the default process group holds one and calls it in the same places."""

    def __init__(
        self, folder: Path, *, before_commit: Callable[[], None] | None = None, tidy: Callable[[], Any] | None = None
    ) -> None:
        """`before_commit` and `tidy` run on rank 0, before a checkpoint appears and after one has appeared; of a save
        in the background, on its thread."""
        self._folder = folder
        self._before_commit = before_commit
        self._tidy = tidy
        self._plan = Plan()
        self._staging = Staging()
        self._save: _Save | None = None
        self.seconds: dict[str, float] = {}
        """Where the last save's time went on this rank, by part."""

    @property
    def busy(self) -> bool:
        """Whether a save is under way; the same on all ranks."""
        return self._save is not None

    def prepare(self, sharded_state: dict[str, Any]) -> None:
        """Take the host memory that saves in the background need, by a copy of a state like those to come."""
        pieces, _ = together(lambda: pieces_of(without_extra_state(sharded_state)), "cannot prepare saving")
        together(lambda: self._staging.stage(pieces), "cannot prepare saving")

    def save(self, step: int, sharded_state: dict[str, Any], contents: Contents) -> Path:
        """Save a checkpoint and wait until it is there; returns its folder.

        `sharded_state` is a Megatron-Core sharded state dict, of modules and optimisers alike; what is not sharded in
        it must be equal on all ranks and plain data. An older checkpoint of the same step is replaced. No save may be
        under way.

        Raises BadInput on all ranks, with one line, if the disk is full or fails anywhere; then no folder looks
        complete, what was written is removed, and earlier checkpoints are as they were.
        """
        return self._begin(step, sharded_state, contents, background=False)

    def begin(self, step: int, sharded_state: dict[str, Any], contents: Contents) -> None:
        """Begin to save in the background, where what is to be saved is first copied and then written. `settle` waits
        for the copy, before which no tensor of `sharded_state` may change; `poll` or `wait` finish the save.

        What is no tensor is copied at once.
        """
        self._begin(step, sharded_state, contents, background=True)

    def settle(self) -> None:
        """Wait until the save in the background, if there is one, has copied this rank's tensors, which may change from
        now on. A copy that failed is for `poll` to tell."""
        if self._save is not None:
            self._save.copied.wait()

    def poll(self) -> Path | None:
        """Look how the save in the background is doing, at a step boundary of all ranks.

        Two small numbers are agreed on, and nobody waits for a slow disk. Returns the checkpoint once it is there.
        Raises as `save` does where a rank failed, when all have ended.
        """
        save = self._save
        if save is None:
            return None
        running, failed = highest(int(save.work.running), int(save.work.failed))
        if failed:
            save.abandon.set()
        return None if running else self._go_on(save)

    def wait(self) -> Path | None:
        """Wait for the save in the background, on all ranks; None where there is none. Raises as `save` does."""
        checkpoint = None
        while self._save is not None:
            self._save.work.join()
            checkpoint = self.poll()
        return checkpoint

    def abandon(self) -> None:
        """Have this rank's worker end, without asking the others; what is written is not finished."""
        if self._save is not None:
            self._save.abandon.set()
            self._save.work.join()

    # --- one save -------------------------------------------------------------------------------------------

    def _begin(self, step: int, sharded_state: dict[str, Any], contents: Contents, *, background: bool) -> Path:
        assert self._save is None, "one save at a time"
        clock = _Clock()
        final = step_folder(self._folder, step)
        save = _Save(step, final, partial_of(final), contents, f"cannot save checkpoint {final}", background)
        self._save = save
        try:
            on_first_rank(save.clear, save.doing)
            pieces, common = together(lambda: pieces_of(without_extra_state(sharded_state)), save.doing)
            clock.lap("pieces")
            save.index = self._plan.agree(pieces, save.doing)
            small = together(lambda: save.small_files(_plain_bytes(common)), save.doing)
            clock.lap("plan")
            self.seconds = clock.laps
            copying = beside_training(pieces) if background else None

            def write() -> Written:
                held = pieces
                if copying:
                    clock = _Clock(self.seconds)
                    try:
                        with copying():
                            held = self._staging.stage(pieces, save.abandon)
                        pieces.clear()  # some are tensors that nobody else holds
                    finally:
                        save.copied.set()
                    clock.lap("copy")
                if dist.get_rank() == 0:
                    for name, content in small.items():
                        (save.partial / name).write_bytes(content)
                return write_pieces(save.partial / TENSORS, dist.get_rank(), held, save.abandon)

            save.work = _Work(write, "write", background, self.seconds)
        except BaseException:
            self._give_up(save)
            raise
        if not background:
            while self._save is not None:
                self._go_on(save)
        return final

    def _go_on(self, save: _Save) -> Path | None:
        """From one half of a save to the next, when no rank is at work. Returns the checkpoint after the last."""
        try:
            result = together(save.work.result, save.doing)
            if save.committing:
                self._save = None
                return save.final
            written = gather(result)
            save.committing = True

            def commit() -> None:
                if dist.get_rank() == 0:
                    if self._before_commit:
                        self._before_commit()
                    save.commit(written)
                    if self._tidy:
                        self._tidy()

            save.work = _Work(commit, "commit", save.background, self.seconds)
        except BaseException:
            self._give_up(save)
            raise
        return None

    def _give_up(self, save: _Save) -> None:
        self._save = None
        if dist.get_rank() == 0:
            shutil.rmtree(save.partial, ignore_errors=True)


class _Save:
    """A save under way."""

    def __init__(self, step: int, final: Path, partial: Path, contents: Contents, doing: str, background: bool) -> None:
        self.step = step
        self.final = final
        self.partial = partial
        self.contents = contents
        self.doing = doing
        self.background = background
        self.abandon = threading.Event()
        self.copied = threading.Event()  # in the background: what was to be saved may change
        self.committing = False
        self.index: Metadata | None = None
        self.work: _Work

    def clear(self) -> None:
        shutil.rmtree(self.partial, ignore_errors=True)
        (self.partial / TENSORS).mkdir(parents=True)

    def small_files(self, common: bytes) -> dict[str, bytes]:
        """All files but tensors, index and manifest, as they are now: what the contents refer to may change."""
        texts = {
            STATE_FILE: json.dumps(self.contents.state, indent=1),
            f"{TENSORS}/{FORMAT_FILE}": json.dumps(TORCH_DIST),
            **self.contents.texts,
        }
        return {f"{TENSORS}/{COMMON_FILE}": common, **{name: text.encode() for name, text in texts.items()}}

    def commit(self, written: list[Written]) -> None:
        """Write the index and the manifest, and give the folder its name."""
        assert self.index is not None
        FileSystemWriter(self.partial / TENSORS).finish(self.index, [part.places for part in written])
        known = {f"{TENSORS}/{name}": record for part in written for name, record in part.files.items()}
        tensors = tensor_records(self.index)
        contents = self.contents
        manifest = Manifest(
            step=self.step,
            topology=dict(contents.topology),
            tensors=tensors,
            parameters=count_parameters(tensors),
            files=record_files(self.partial, known),
            vocabulary=None if contents.vocabulary is None else dict(contents.vocabulary),
            origin=dict(contents.origin),
            versions=versions(),
            backbone=None if contents.backbone is None else dict(contents.backbone),
        )
        finish_checkpoint(self.partial, self.final, manifest)


class _Work:
    """Something that is done here and now, or on a thread of its own."""

    def __init__(self, action: Callable[[], Any], name: str, background: bool, seconds: dict[str, float]) -> None:
        self._action = action
        self._name = name
        self._seconds = seconds
        self._result: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"checkpoint {name}", daemon=True)
        self._thread.start() if background else self._run()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    @property
    def failed(self) -> bool:
        return self._error is not None

    def join(self) -> None:
        if self.running:
            self._thread.join()

    def result(self) -> Any:
        """What it returned. Raises what it raised; a rank that gave up because of another has nothing to report."""
        if self._error is not None and not isinstance(self._error, Abandoned):
            raise self._error
        return self._result

    def _run(self) -> None:
        started = time.perf_counter()
        try:
            self._result = self._action()
        except BaseException as error:
            self._error = error
        self._seconds[self._name] = time.perf_counter() - started


class _Clock:
    def __init__(self, laps: dict[str, float] | None = None) -> None:
        self.laps = {} if laps is None else laps
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now


def finish_checkpoint(partial: Path, final: Path, manifest: Manifest) -> None:
    """Mark what `partial` holds complete and give it its name."""
    write_manifest(partial, manifest)
    sync_folder(partial)
    put_in_place(partial, final)


def _plain_bytes(common: dict[str, Any]) -> bytes:
    """Serialise what is not sharded, refusing now what a load would refuse later."""
    buffer = io.BytesIO()
    torch.save(common, buffer)
    torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    return buffer.getvalue()
