"""Saves in the background: the same files as others, agreed over ranks, and honest where the disk or a rank fails."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.planner import SavePlan

from checkpoints import store, writing
from checkpoints.manifest import problems, read_manifest
from checkpoints.saving import Contents, Saver
from checkpoints.staging import Staging
from runtime.exits import BadInput
from tests.checkpoints.disks import small_disk
from tests.checkpoints.test_store import TOPOLOGY, sharded, values
from tests.ranks import RankFailed, run_ranks

CONTENTS = Contents(state={"tokens": 1}, topology=TOPOLOGY, texts={"config.yaml": "a: 1\n"})


@pytest.fixture
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_the_files_are_those_of_a_save_that_is_waited_for(tmp_path: Path, group: None) -> None:
    waited, background = Saver(tmp_path / "waited"), Saver(tmp_path / "background")
    one = waited.save(7, sharded(values(7), 0.5), CONTENTS)
    background.begin(7, sharded(values(7), 0.5), CONTENTS)
    assert background.busy
    other = background.wait()
    assert other is not None and not background.busy and problems(other) == []
    files, others = read_manifest(one).files, read_manifest(other).files
    assert files.keys() == others.keys()
    different = {name for name in files if files[name] != others[name]}
    assert different == {"tensors/.metadata"}  # it names its folder


def test_what_training_changes_meanwhile_is_not_saved(
    tmp_path: Path, group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver, may_write = Saver(tmp_path), threading.Event()
    original = writing._write_piece

    def held_up(*arguments: Any) -> Any:
        assert may_write.wait(30)
        return original(*arguments)

    monkeypatch.setattr(writing, "_write_piece", held_up)
    parameter, state = values(1), {"tokens": 1}
    saver.begin(1, sharded(parameter), Contents(state=state, topology=TOPOLOGY))
    assert saver.poll() is None and saver.busy
    state["tokens"] = 2
    saver.settle()
    parameter += 100
    may_write.set()
    checkpoint = saver.wait()
    assert checkpoint is not None
    assert torch.equal(store.load(checkpoint, sharded(torch.zeros(16, 4)))["weight"], values(1))
    assert store.read_state(checkpoint) == {"tokens": 1}


def test_what_is_copied_may_change_when_it_has_settled(
    tmp_path: Path, group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver, may_copy = Saver(tmp_path), threading.Event()
    stage = Staging.stage

    def late(*arguments: Any) -> Any:
        assert may_copy.wait(30)
        return stage(*arguments)

    monkeypatch.setattr(Staging, "stage", late)
    saver.settle()  # nothing to wait for
    saver.begin(1, sharded(values(1)), CONTENTS)
    waiting = threading.Thread(target=saver.settle)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    may_copy.set()
    waiting.join(30)
    assert not waiting.is_alive()
    assert saver.wait() is not None


def test_a_copy_that_fails_is_the_saves_error_and_keeps_nobody_waiting(
    tmp_path: Path, group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = Saver(tmp_path)

    def fails(*_: Any) -> Any:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(Staging, "stage", fails)
    saver.begin(1, sharded(values(1)), CONTENTS)
    saver.settle()
    with pytest.raises(BadInput, match="Cannot allocate memory"):
        saver.wait()
    assert not saver.busy and list(tmp_path.iterdir()) == []


def test_the_plan_is_made_once_and_again_when_the_pieces_change(
    tmp_path: Path, group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = Saver(tmp_path)
    made, make = [], saver._plan._make

    def count(plans: list[SavePlan]) -> None:
        made.append(plans)
        make(plans)

    monkeypatch.setattr(saver._plan, "_make", count)
    for step in (1, 2, 3):
        saver.begin(step, sharded(values(step)), CONTENTS)
        checkpoint = saver.wait()
        assert checkpoint is not None and problems(checkpoint) == []
        assert torch.equal(store.load(checkpoint, sharded(torch.zeros(16, 4)))["weight"], values(step))
    assert len(made) == 1
    checkpoint = saver.save(4, sharded(torch.ones(8, 4)), CONTENTS)
    assert len(made) == 2 and torch.equal(
        store.load(checkpoint, sharded(torch.zeros(8, 4)))["weight"], torch.ones(8, 4)
    )


def test_a_full_disk_is_told_when_asked_and_the_next_save_works(tmp_path: Path, group: None) -> None:
    folder = tmp_path / "disk"
    with small_disk(folder, 2_000_000):
        saver = Saver(folder)
        before = saver.save(1, sharded(values(1)), CONTENTS)
        saver.begin(2, sharded(torch.zeros(1_000_000, 4)), CONTENTS)
        with pytest.raises(BadInput, match=r"cannot save checkpoint .*step-00000002") as raised:
            saver.wait()
        assert "\n" not in str(raised.value)
        assert not saver.busy and [path.name for path in folder.iterdir()] == [before.name]
        assert problems(saver.save(3, sharded(values(3)), CONTENTS)) == []


def _part(rank: int, rows: int) -> dict[str, Any]:
    from megatron.core.dist_checkpointing import ShardedTensor

    return {"part": ShardedTensor.from_rank_offsets(f"model.part{rank}", torch.full((rows, 1), float(rank)))}


def _full_on_one_rank(folder: str, limit: int | None) -> tuple[str, list[str]]:
    """Rank 1 alone has much to write, and rank 0 waits to be told of its failure; `limit` is bytes a file may have
    where there is no small disk."""
    dist.init_process_group("gloo")
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    rank, saver = dist.get_rank(), Saver(Path(folder))
    original = writing._write_piece

    def slow(*arguments: Any) -> Any:
        abandon = arguments[3]
        assert abandon.wait(60)
        return original(*arguments)

    if rank == 0:
        writing._write_piece = slow
    saver.begin(2, _part(rank, 2_000_000 if rank == 1 else 10), CONTENTS)
    with pytest.raises(BadInput) as raised:
        while saver.busy:
            saver.poll()
            time.sleep(0.01)
    writing._write_piece = original
    dist.barrier()
    left = sorted(path.name for path in Path(folder).iterdir())
    dist.barrier()  # both have looked before the next save begins
    saver.begin(3, _part(rank, 10), CONTENTS)
    assert saver.wait() is not None
    return str(raised.value), left


def test_a_disk_that_one_rank_finds_full_is_one_line_on_all(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    size = 3_000_000
    with small_disk(folder, size) as mounted:
        first, second = run_ranks(_full_on_one_rank, 2, str(folder), None if mounted else size, timeout=60)
        assert first == second and "cannot save checkpoint" in first[0] and "(rank 1)" in first[0]
        assert first[1] == []
        assert problems(folder / "step-00000003") == []


def _killed_in_mid_save(folder: str, victim: int, half: str) -> None:
    """Rank `victim` kills itself where a save in the background has written one piece, or is about to commit."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    saver = Saver(Path(folder), before_commit=die if half == "commit" else None)
    if half == "write" and rank == victim:
        original, turns = writing._write_piece, iter(range(100))

        def write(*arguments: Any) -> Any:
            written = original(*arguments)
            if next(turns):
                die()
            return written

        writing._write_piece = write
    saver.begin(2, sharded(values(2), 0.0, rank, dist.get_world_size()), CONTENTS)
    saver.wait()


def _save_one(folder: str) -> None:
    dist.init_process_group("gloo")
    Saver(Path(folder)).save(1, sharded(values(1), 0.0, dist.get_rank(), dist.get_world_size()), CONTENTS)


@pytest.mark.parametrize("half", ["write", "commit"])
def test_kill_9_in_mid_save_leaves_the_previous_checkpoint(tmp_path: Path, half: str, group: None) -> None:
    run_ranks(_save_one, 2, str(tmp_path))
    before = tmp_path / "step-00000001"
    with pytest.raises(RankFailed):
        run_ranks(_killed_in_mid_save, 2, str(tmp_path), 0, half)
    assert (tmp_path / "step-00000002.partial" / "tensors" / "__0_0.distcp").exists()
    assert store.newest_usable(tmp_path, pytest.fail) == before
    assert torch.equal(store.load(before, sharded(torch.zeros(16, 4)))["weight"], values(1))
    after = Saver(tmp_path).save(2, sharded(values(2)), CONTENTS)  # what was left is in nobody's way
    assert problems(after) == [] and sorted(tmp_path.iterdir()) == [before, after]
