"""Native checkpoints: complete or refused, on any number of ranks, also when the disk is not on our side."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import ShardedObject

from checkpoints import store
from checkpoints.inspect import describe, verify
from checkpoints.manifest import MANIFEST_FILE, FileRecord, is_inside, problems, read_manifest, write_manifest
from checkpoints.metadata import METADATA_FILE
from checkpoints.retention import prune
from runtime.exits import BadInput
from tests.checkpoints.disks import small_disk
from tests.ranks import run_ranks

TOPOLOGY = {"tensor": 1}


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def sharded(values: torch.Tensor, rate: float = 0.0, rank: int = 0, world: int = 1) -> dict[str, Any]:
    """A state dict of one parameter, split over ranks by rows, one replicated moment, and a plain number."""
    part = values.chunk(world)[rank].clone()
    return {
        "weight": ShardedTensor.from_rank_offsets("model.weight", part, (0, rank, world)),
        "moment": ShardedTensor.from_rank_offsets("optimizer.moment", values.clone(), replica_id=rank),
        "extra": ShardedObject("model._extra_state", None, (1,), (0,), replica_id=rank),
        "optimizer": {"lr": rate},
    }


def values(step: int) -> torch.Tensor:
    return torch.arange(64.0).reshape(16, 4) + step


def save(folder: Path, step: int, **options: Any) -> Path:
    return store.save(
        folder, step, sharded(values(step), step / 8), state={"tokens": step}, topology=TOPOLOGY, **options
    )


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    vocabulary = {"text_size": 7, "ranges": {"text": [0, 7]}}
    checkpoint = save(tmp_path, 3, vocabulary=vocabulary, texts={"config.yaml": "a: 1\n"})

    assert checkpoint == tmp_path / "step-00000003"
    loaded = store.load(checkpoint, sharded(torch.zeros(16, 4)))
    assert torch.equal(loaded["weight"], values(3)) and torch.equal(loaded["moment"], values(3))
    assert loaded["optimizer"] == {"lr": 3 / 8} and loaded["extra"] is None
    assert store.read_state(checkpoint) == {"tokens": 3}
    assert (checkpoint / "config.yaml").read_text() == "a: 1\n"

    manifest = read_manifest(checkpoint)
    assert (manifest.step, manifest.topology, manifest.vocabulary) == (3, TOPOLOGY, vocabulary)
    assert manifest.parameters == 64  # the moment is no parameter
    assert set(manifest.tensors) == {"model.weight", "optimizer.moment"}
    assert verify(checkpoint) == [] and "[16, 4]" in describe(tmp_path)


def test_parameters_load_without_the_optimiser(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 1)
    loaded = store.load(checkpoint, {"weight": sharded(torch.zeros(16, 4))["weight"]})
    assert torch.equal(loaded["weight"], values(1))


def test_other_precision_is_cast_on_load(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 1)
    loaded = store.load(checkpoint, sharded(torch.zeros(16, 4, dtype=torch.bfloat16)))
    assert torch.equal(loaded["weight"], values(1).bfloat16())


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 1, texts={"old.txt": ""})
    checkpoint = save(tmp_path, 1)
    assert problems(checkpoint) == [] and not (checkpoint / "old.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]


@pytest.mark.parametrize("name", ["tensors/__0_0.distcp", "tensors/.metadata", "tensors/common.pt", "state.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_checkpoint_is_refused_by_name_and_the_previous_used(tmp_path: Path, name: str, damage: str) -> None:
    before, damaged = save(tmp_path, 1), save(tmp_path, 2)
    path = damaged / name
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(content[:-1])
    elif damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()

    said: list[str] = []
    assert store.newest_usable(tmp_path, said.append) == before
    assert len(said) == 1 and damaged.name in said[0] and name in said[0]
    assert any(damaged.name in line for line in verify(tmp_path))


def test_an_unfinished_checkpoint_is_refused(tmp_path: Path) -> None:
    before, unfinished = save(tmp_path, 1), save(tmp_path, 2)
    (unfinished / MANIFEST_FILE).unlink()
    shutil.copytree(before, tmp_path / "step-00000003.partial")

    said: list[str] = []
    assert store.newest_usable(tmp_path, said.append) == before
    assert store.complete_checkpoints(tmp_path) == [before]
    assert unfinished.name in said[0] and "did not finish" in said[0]
    with pytest.raises(BadInput, match="did not finish"):
        store.load(unfinished, sharded(torch.zeros(16, 4)))


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    assert store.newest_usable(tmp_path / "nowhere", pytest.fail) is None
    assert "no such checkpoint folder" in verify(tmp_path / "nowhere")[0]


@pytest.mark.parametrize("text", ["", "[]", '{"format": 1}', '{"format": 99}', "null"])
def test_a_damaged_manifest_is_one_line(tmp_path: Path, text: str) -> None:
    checkpoint = save(tmp_path, 1)
    (checkpoint / MANIFEST_FILE).write_text(text)
    found = problems(checkpoint)
    assert len(found) == 1 and MANIFEST_FILE in found[0] and "\n" not in found[0]


def test_a_misfit_is_said_before_anything_is_read(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 1)
    with pytest.raises(BadInput, match=r"model.weight is \[16, 4\], this model's is \[8, 4\]"):
        store.load(checkpoint, sharded(torch.zeros(8, 4)))
    with pytest.raises(BadInput, match=r"has no model.other"):
        store.load(checkpoint, {"other": ShardedTensor.from_rank_offsets("model.other", torch.zeros(2))})


def test_prune_keeps_the_newest_and_clears_what_was_left(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    (tmp_path / "step-00000004.partial").mkdir()
    assert [path.name for path in prune(tmp_path, 0)] == []
    prune(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


# --- checkpoints from elsewhere -------------------------------------------------------------------------------------


class _Code:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def test_code_in_the_index_is_not_run(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 1)
    marker = tmp_path / "ran"
    (checkpoint / "tensors" / METADATA_FILE).write_bytes(pickle.dumps(_Code(f"touch {marker}")))
    with pytest.raises(BadInput, match=r"posix.system is not allowed"):
        store.load(checkpoint, sharded(torch.zeros(16, 4)))
    assert not marker.exists()


def test_code_in_a_stored_object_is_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    state = sharded(values(1))
    state["object"] = ShardedObject("optimizer.object", _Code(f"touch {marker}"), (1,), (0,))
    checkpoint = store.save(tmp_path, 1, state, state={}, topology={})
    with pytest.raises(BadInput, match=r"optimizer.object.* refused"):
        store.load(checkpoint, {"object": ShardedObject("optimizer.object", None, (1,), (0,))})
    assert not marker.exists()


def test_the_index_cannot_point_outside(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 1)
    folder = checkpoint / "tensors"
    index = pickle.loads((folder / METADATA_FILE).read_bytes())
    for place in index.storage_data.values():
        place.relative_path = "../../outside"
    (folder / METADATA_FILE).write_bytes(pickle.dumps(index))
    with pytest.raises(BadInput, match="points outside"):
        store.load(checkpoint, sharded(torch.zeros(16, 4)))


def test_the_manifest_cannot_point_outside(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 1)
    manifest = read_manifest(checkpoint)
    manifest.files["../outside"] = FileRecord(0, "")
    write_manifest(checkpoint, manifest)
    assert "outside the checkpoint" in problems(checkpoint)[0]
    assert is_inside("tensors/.metadata")
    assert not any(map(is_inside, ["", "/etc/passwd", "..", "a/../../b", "a\\b"]))


def test_links_are_not_followed(tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "run", 1)
    elsewhere = tmp_path / "elsewhere"
    (checkpoint / "tensors").rename(elsewhere)
    (checkpoint / "tensors").symlink_to(elsewhere)
    said: list[str] = []
    assert store.newest_usable(tmp_path / "run", said.append) is None
    assert "tensors: a symbolic link" in said[0]


# --- a full disk ----------------------------------------------------------------------------------------------------


def test_a_full_disk_is_one_line_and_spoils_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    with small_disk(folder, 2_000_000):
        before = save(folder, 1)
        with pytest.raises(BadInput) as raised:
            store.save(folder, 2, sharded(torch.zeros(1_000_000, 4)), state={}, topology=TOPOLOGY)
        assert "cannot save checkpoint" in str(raised.value) and "step-00000002" in str(raised.value)
        assert "\n" not in str(raised.value)
        assert [path.name for path in folder.iterdir()] == [before.name]
        assert problems(before) == []
        assert problems(save(folder, 3)) == []  # the room is free again


@pytest.mark.parametrize("turn", [1, 2, 3, 4])
def test_a_save_that_fails_late_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turn: int) -> None:
    """The small files come first; each of their writes, and that of the index, may find the disk full."""
    original, turns = Path.open, iter(range(1, 100))

    def fail(self: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        stream = original(self, mode, *arguments, **options)
        if "w" in mode and next(turns) == turn:
            stream.close()
            raise OSError(28, "No space left on device")
        return stream

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", fail)
        with pytest.raises(BadInput, match="No space left on device"):
            save(tmp_path, 1, texts={"config.yaml": ""})
    assert next(turns) > turn and list(tmp_path.iterdir()) == []


# --- several ranks --------------------------------------------------------------------------------------------------


def _join() -> tuple[int, int]:
    dist.init_process_group("gloo")
    return dist.get_rank(), dist.get_world_size()


def _save_together(folder: str, step: int) -> str:
    rank, world = _join()
    state = sharded(values(step), step / 8, rank, world)
    return store.save(Path(folder), step, state, state={"tokens": step}, topology={"tensor": world}).name


def _load_together(checkpoint: str) -> tuple[list[float], float]:
    rank, world = _join()
    loaded = store.load(Path(checkpoint), sharded(torch.zeros(16, 4), 0.0, rank, world))
    return loaded["weight"].flatten().tolist(), loaded["optimizer"]["lr"]


def _fail_together(folder: str, limit: int | None) -> str:
    """Only rank 1 has much to write; `limit` is bytes a file may have where there is no small disk."""
    rank, world = _join()
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    rows = torch.zeros(2_000_000, 1) if rank == 1 else torch.zeros(10, 1)
    state = {f"part{rank}": ShardedTensor.from_rank_offsets(f"model.part{rank}", rows)}
    with pytest.raises(BadInput) as raised:
        store.save(Path(folder), 2, state, state={}, topology={"tensor": world})
    dist.barrier()
    return str(raised.value)


def test_saved_on_two_ranks_loaded_on_one_and_back(tmp_path: Path) -> None:
    assert run_ranks(_save_together, 2, str(tmp_path), 1) == ["step-00000001"] * 2
    checkpoint = tmp_path / "step-00000001"
    assert problems(checkpoint) == [] and read_manifest(checkpoint).topology == {"tensor": 2}
    assert {"tensors/__0_0.distcp", "tensors/__1_0.distcp"} <= set(read_manifest(checkpoint).files)
    assert torch.equal(store.load(checkpoint, sharded(torch.zeros(16, 4)))["weight"], values(1))

    parts = run_ranks(_load_together, 2, str(save(tmp_path, 2)))
    assert [number for part, _ in parts for number in part] == values(2).flatten().tolist()
    assert [rate for _, rate in parts] == [2 / 8] * 2


def test_all_ranks_learn_that_one_found_the_disk_full(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    size = 3_000_000
    with small_disk(folder, size) as mounted:
        before = save(folder, 1)
        first, second = run_ranks(_fail_together, 2, str(folder), None if mounted else size, timeout=60)
        assert first == second and "cannot save checkpoint" in first
        assert [path.name for path in folder.iterdir()] == [before.name] and problems(before) == []


def test_state_is_json(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 1)
    assert json.loads((checkpoint / store.STATE_FILE).read_text()) == {"tokens": 1}
