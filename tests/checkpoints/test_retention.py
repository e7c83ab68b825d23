"""Which checkpoints stay, what a reader of one that goes is told, and what a crash leaves."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from checkpoints import atomic, store
from checkpoints.inspect import verify
from checkpoints.layout import step_folder
from checkpoints.manifest import MANIFEST_FILE, problems
from checkpoints.readers import reading, unless_read
from checkpoints.retention import prune, to_remove
from checkpoints.saving import Saver
from runtime.exits import BadInput
from tests.checkpoints.test_saving import CONTENTS
from tests.checkpoints.test_store import sharded, values
from tests.ranks import run_ranks


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    saver = Saver(tmp_path)
    return [saver.save(step, sharded(values(step)), CONTENTS) for step in (1, 2, 3)]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@given(st.sets(st.integers(0, 60), max_size=12), st.integers(0, 5), st.integers(0, 7))
def test_the_newest_and_every_nth_stay(steps: set[int], keep: int, keep_every: int) -> None:
    checkpoints = [step_folder(Path("nowhere"), step) for step in sorted(steps)]
    gone = set(to_remove(checkpoints, keep, keep_every))
    for step, path in zip(sorted(steps), checkpoints, strict=True):
        newer = sum(other > step for other in steps)
        stays = not keep or newer < keep or (keep_every and step % keep_every == 0)
        assert (path in gone) == (not stays)


def test_the_newest_usable_one_stays_whatever_is_to_be_kept(tmp_path: Path, three: list[Path]) -> None:
    for damaged in three[1:]:
        (damaged / "tensors" / "__0_0.distcp").unlink()
    prune(tmp_path, 1)
    assert names(tmp_path) == [three[0].name, three[2].name]


def test_a_crash_in_mid_prune_leaves_nothing_that_looks_complete(
    tmp_path: Path, three: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(path: Path, **_: object) -> None:
        if path.is_dir():
            next(path.rglob("*.distcp")).unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(atomic.shutil, "rmtree", lambda path, **_: crash(path))
        with pytest.raises(KeyboardInterrupt):
            prune(tmp_path, 1)
    assert names(tmp_path) == [f"{three[0].name}.removed", three[1].name, three[2].name]
    assert store.complete_checkpoints(tmp_path) == three[1:]
    prune(tmp_path, 1)
    assert names(tmp_path) == [three[2].name]


def test_what_is_read_stays_until_it_is_not(tmp_path: Path, three: list[Path]) -> None:
    with reading(three[0]), reading(three[0]), unless_read(three[1]):
        prune(tmp_path, 1)
        assert names(tmp_path) == [three[0].name, three[1].name, three[2].name]
    prune(tmp_path, 1)
    assert names(tmp_path) == [three[2].name]


def test_a_reader_whose_checkpoint_goes_all_the_same_is_told(tmp_path: Path, three: list[Path]) -> None:
    """As on a file system without locks, or where somebody removes it by hand."""
    with pytest.raises(BadInput, match="removed while it was being read"), reading(three[0]):
        shutil.rmtree(three[0])
        (three[0] / MANIFEST_FILE).read_text()
    with pytest.raises(BadInput, match="removed while it was being read"), reading(three[1]):
        shutil.rmtree(three[1])
    with pytest.raises(BadInput, match="No such file"), reading(three[1]):
        pass
    with pytest.raises(ZeroDivisionError), reading(three[2]):
        raise ZeroDivisionError


def _read_again_and_again(folder: str, pipe: Connection) -> None:
    """Verify, copy and check the newest checkpoint over and over; count what was whole and what was told."""
    whole, told = 0, 0
    try:
        while not pipe.poll():
            found = store.complete_checkpoints(Path(folder))
            if not found:
                continue
            copy = Path(folder).parent / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            try:
                with reading(found[-1]):
                    time.sleep(0.01)
                    shutil.copytree(found[-1], copy)
                assert problems(copy) == [], problems(copy)
                whole += 1
            except BadInput as error:
                assert "removed while" in str(error) or "No such file" in str(error), error
                told += 1
        pipe.send((whole, told))
    except BaseException as error:
        pipe.send(f"{type(error).__name__}: {error}")


def test_a_reader_beside_saves_and_prunes_gets_a_whole_checkpoint_or_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    saver = Saver(folder, tidy=lambda: prune(folder, 1))
    saver.save(1, sharded(values(1)), CONTENTS)
    here, there = multiprocessing.Pipe()
    reader = multiprocessing.get_context("fork").Process(target=_read_again_and_again, args=(str(folder), there))
    reader.start()
    try:
        deadline = time.monotonic() + 1.5
        step = 1
        while time.monotonic() < deadline:
            step += 1
            saver.begin(step, sharded(values(step)), CONTENTS)
            saver.wait()
        here.send(None)
        assert here.poll(30), "the reader gave no answer"
        answer = here.recv()
    finally:
        os.kill(reader.pid, signal.SIGKILL)
        reader.join()
    assert isinstance(answer, tuple), answer
    assert answer[0] > 3 and step > 10, (answer, step)
    assert not any("cannot" in line for line in verify(folder))


# --- hashing shared over ranks --------------------------------------------------------------------------------------


def _newest(folder: str, contents: bool) -> tuple[str | None, list[str], list[str]]:
    dist.init_process_group("gloo")
    read: list[str] = []
    original = store.problem_of

    def noted(checkpoint: Path, name: str, record: object) -> str | None:
        read.append(name)
        return original(checkpoint, name, record)

    store.problem_of = noted
    said: list[str] = []
    found = store.newest_usable_together(Path(folder), said.append, contents)
    store.problem_of = original
    return found.name if found else None, said, read


def test_ranks_share_the_hashing_and_agree(tmp_path: Path, three: list[Path]) -> None:
    damaged = three[2] / "config.yaml"
    damaged.write_bytes(bytes([damaged.read_bytes()[0] ^ 1]) + damaged.read_bytes()[1:])
    answers = run_ranks(_newest, 3, str(tmp_path), True)
    assert {answer[0] for answer in answers} == {three[1].name}
    assert all(answer[1] == answers[0][1] for answer in answers)
    assert answers[0][1] == ["refused checkpoint step-00000003: config.yaml: its contents changed since it was written"]
    read = [name for answer in answers for name in answer[2]]
    assert len(read) == 2 * len(set(read)), "every file of both, and by one rank alone"
    assert max(len(answer[2]) for answer in answers) < len(read)
    assert [answer[0] for answer in run_ranks(_newest, 2, str(tmp_path), False)] == [three[2].name] * 2
