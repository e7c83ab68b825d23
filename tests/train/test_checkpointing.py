"""Asynchronous checkpoints of real runs: the curve and the files are those of a run that waits, whatever goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from checkpoints import writing
from checkpoints.manifest import problems, read_manifest
from configs.schema import Config
from runtime.exits import BAD_INPUT, STOPPED_EARLY
from tests.checkpoints.disks import small_disk
from tests.ranks import RankFailed, run_ranks
from tests.train.runs import run_config, stage
from tests.train.test_resume import STEPS, config_of, corpus, curve, uninterrupted, write

__all__ = ["corpus", "uninterrupted"]  # fixtures


def asynchronous(folder: Path, corpus: Path, **changes: Any) -> Config:
    settings = {"parallel__distributed_optimizer": True, "checkpoint__asynchronous": True, **changes}
    return config_of(folder, corpus, **settings)


def heard_stage(config_file: str) -> int:
    """The stage, with what it prints appended to `said` beside its config."""
    heard = os.open(Path(config_file).with_name("said"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(heard, 1)
    os.dup2(heard, 2)
    return stage(config_file)


def said(config: Config, words: str) -> list[str]:
    return [line for line in (Path(config.run.folder) / "said").read_text().splitlines() if words in line]


def disturbed(config_file: str, victim: int, fault: str, number: int) -> int:
    """The stage, but the second save on rank `victim` (the first is of memory alone) meets `fault` in mid-write."""
    original, rank = writing.write_pieces, int(os.environ["RANK"])
    turns = iter(range(1, 1000))

    def write_pieces(folder: Path, *arguments: Any) -> Any:
        turn = next(turns)
        if turn == 2 and rank == victim and fault == "signal":
            os.kill(os.getpid(), number)
        if turn == 2 and fault == "signal":
            time.sleep(0.3)  # still under way when the next step looks
        if turn == 2 and rank == victim and fault == "full":
            raise OSError(28, "No space left on device", str(folder))
        return original(folder, *arguments)

    from checkpoints import saving

    saving.write_pieces = write_pieces
    return heard_stage(config_file)


def test_the_curve_and_the_tensors_are_those_of_a_run_that_waits(
    corpus: Path, uninterrupted: list[dict[str, Any]], tmp_path: Path
) -> None:
    config = asynchronous(tmp_path / "run", corpus)
    assert curve(run_config(config, 2)) == curve(uninterrupted)
    waited = config_of(tmp_path / "waited", corpus, parallel__distributed_optimizer=True)
    run_config(waited, 2)
    for step in (8, 12):
        one, other = (tmp_path / name / f"checkpoints/step-{step:08d}" for name in ("run", "waited"))
        files, others = read_manifest(one).files, read_manifest(other).files
        for rank in (0, 1):
            assert files[f"tensors/__{rank}_0.distcp"] == others[f"tensors/__{rank}_0.distcp"], (step, rank)
        assert problems(one) == [] and problems(other) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_signal_while_a_save_is_under_way(
    number: int, corpus: Path, uninterrupted: list[dict[str, Any]], tmp_path: Path
) -> None:
    config = asynchronous(tmp_path / "run", corpus)
    file, checkpoints = write(config), tmp_path / "run/checkpoints"
    if number == signal.SIGKILL:
        with pytest.raises(RankFailed):
            run_ranks(disturbed, 2, file, 1, "signal", number)
        assert not (checkpoints / "step-00000008").exists() and problems(checkpoints / "step-00000004") == []
    else:
        assert run_ranks(disturbed, 2, file, 1, "signal", number) == [STOPPED_EARLY] * 2
        stopped_at = json.loads((tmp_path / "run/results.json").read_text())["step"]
        assert stopped_at >= 8 and problems(checkpoints / f"step-{stopped_at:08d}") == []
    assert curve(run_config(config, 2)) == curve(uninterrupted)


@pytest.mark.parametrize("failures", [0, 1])
def test_a_disk_that_is_full_for_once(
    failures: int, corpus: Path, uninterrupted: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Without leave to fail the run ends with one line; with it the run goes on, and its last checkpoint is there."""
    config = asynchronous(tmp_path / "run", corpus, checkpoint__failures=failures)
    codes = run_ranks(disturbed, 2, write(config), 1, "full", 0)
    assert codes == [BAD_INPUT * (not failures)] * 2
    (line,) = set(said(config, "No space left"))
    assert "step-00000008" in line and ("training goes on" in line) == bool(failures)
    kept = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert kept == (["step-00000004", "step-00000012"] if failures else ["step-00000004"])
    assert curve(run_config(config, 2)) == curve(uninterrupted)


def test_a_disk_that_stays_full_ends_the_run_before_its_work_is_lost_again(corpus: Path, tmp_path: Path) -> None:
    """Room for one checkpoint and a bit: the second finds the disk full, the third too."""
    first = run_config(config_of(tmp_path / "sized", corpus, train__steps=4))
    assert first
    size = sum(path.stat().st_size for path in (tmp_path / "sized/checkpoints").rglob("*") if path.is_file())
    config = asynchronous(tmp_path / "run", corpus, checkpoint__failures=1, parallel__distributed_optimizer=False)
    write(config)
    checkpoints = tmp_path / "run/checkpoints"
    with small_disk(checkpoints, int(1.5 * size)) as mounted:
        if mounted:
            assert run_ranks(heard_stage, 1, str(tmp_path / "run/config.yaml")) == [BAD_INPUT]
            assert [path.name for path in checkpoints.iterdir()] == ["step-00000004"]
            assert problems(checkpoints / "step-00000004") == []
            assert len(said(config, "No space left on device")) == 2
            subprocess.run(["mount", "-o", "remount,size=100m", str(checkpoints)], check=True)  # somebody made room
            assert [line["step"] for line in run_config(config)] == list(range(1, STEPS + 1))


def test_checkpoints_of_every_nth_step_stay(corpus: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path / "run", corpus, checkpoint__every=2, checkpoint__keep=1, checkpoint__keep_every=6)
    run_config(config)
    kept = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert kept == ["step-00000006", "step-00000012"]
    told = json.loads((tmp_path / "run/checkpoints/step-00000012/codebooks.json").read_text())
    assert told == {"linguistic": "synthetic", "semantic": "synthetic"}, "what later stages compare theirs with"
