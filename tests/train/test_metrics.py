"""Metric files, the console and the tracker."""

import io
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import wandb
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import TrackerConfig
from runtime.run_files import METRICS_FILE
from train.console import Console
from train.metrics import MetricLog, read_metrics, read_validation
from train.tracker import RUN_ID_FILE, Tracker

REPOSITORY = Path(__file__).resolve().parents[2]

# --- files ------------------------------------------------------------------------------------------------------


def _write(folder: Path, first: int, last: int, resume_step: int = 0, **extra: object) -> None:
    with MetricLog(folder, resume_step) as log:
        for step in range(first, last + 1):
            log.step({"step": step, "loss": 1.0 / step, **extra})


def test_a_resumed_curve_has_every_step_once(tmp_path: Path) -> None:
    _write(tmp_path, 1, 17, attempt=1)
    _write(tmp_path, 11, 20, resume_step=10, attempt=2)
    records = read_metrics(tmp_path)
    assert [record["step"] for record in records] == list(range(1, 21))
    assert [record["attempt"] for record in records] == [1] * 10 + [2] * 10
    assert len((tmp_path / METRICS_FILE).read_text().splitlines()) == 20


def test_validations_up_to_the_checkpoint_survive_a_resume(tmp_path: Path) -> None:
    with MetricLog(tmp_path, 0) as log:
        for step in (0, 10, 20):
            log.validation({"step": step, "loss": 2.0})
    MetricLog(tmp_path, 10).close()
    assert [record["step"] for record in read_validation(tmp_path)] == [0, 10]


@given(cut=st.integers(min_value=1, max_value=40))
def test_a_torn_last_line_costs_that_line_only(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = tmp_path_factory.mktemp("run")
    _write(folder, 1, 5, note="é" * 20)
    path = folder / METRICS_FILE
    path.write_bytes(path.read_bytes()[:-cut])
    assert [record["step"] for record in read_metrics(folder)] == [1, 2, 3, 4]
    _write(folder, 5, 6, resume_step=5)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4, 5, 6]


def test_every_line_is_there_without_closing(tmp_path: Path) -> None:
    log = MetricLog(tmp_path, 0)
    log.step({"step": 1, "loss": 2.0})
    assert (tmp_path / METRICS_FILE).read_text().endswith("}\n")
    log.close()


def test_numbers_that_are_not_finite_are_strict_json_and_come_back(tmp_path: Path) -> None:
    with MetricLog(tmp_path, 0) as log:
        log.step({"step": 1, "loss": math.nan, "grad_norm": math.inf, "low": -math.inf, "mfu": None})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads((tmp_path / METRICS_FILE).read_text(), parse_constant=refuse)
    MetricLog(tmp_path, 1).close()  # the rewrite keeps them too
    (record,) = read_metrics(tmp_path)
    assert math.isnan(record["loss"]) and record["grad_norm"] == math.inf and record["low"] == -math.inf
    assert record["mfu"] is None


def test_floats_survive_exactly(tmp_path: Path) -> None:
    values = [1 / 3, 1e-300, 2.0000000000000004]
    with MetricLog(tmp_path, 0) as log:
        for step, value in enumerate(values, 1):
            log.step({"step": step, "loss": value})
    MetricLog(tmp_path, 3).close()
    assert [record["loss"] for record in read_metrics(tmp_path)] == values


def test_a_record_without_a_step_is_refused(tmp_path: Path) -> None:
    with MetricLog(tmp_path, 0) as log, pytest.raises(ValueError, match="needs a step"):
        log.step({"loss": 1.0})


def test_no_files_are_no_records(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == [] and read_validation(tmp_path) == []


# --- console ----------------------------------------------------------------------------------------------------


def test_the_console_prints_every_few_steps_and_the_last() -> None:
    stream = io.StringIO()
    console = Console(steps=25, start=0, every=10, stream=stream)
    for step in range(1, 26):
        console.step({"step": step, "loss": 4.0, "loss/lm": 4.0, "loss/text": 3.0, "lr/head": 5e-4, "seconds": 2.0})
    console.close()
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["10/25", "20/25", "25/25"]
    assert "0:00:30 left" in lines[0]  # 15 steps of 2 seconds
    assert "text  3.0000" in lines[0] and "lm" not in lines[0]
    assert len({line.index("loss") for line in lines}) == 1


def test_the_console_copes_with_unknown_and_not_finite_values() -> None:
    stream = io.StringIO()
    console = Console(steps=1, every=1, stream=stream)
    console.step({"step": 1, "loss": math.nan, "grad_norm": None, "mfu": None, "tokens_per_second": 12.0})
    assert "nan" in stream.getvalue() and "mfu" not in stream.getvalue()


# --- tracker ----------------------------------------------------------------------------------------------------


def test_wandb_that_cannot_start_costs_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> None:
        raise OSError("no space\nleft")

    monkeypatch.setattr(wandb, "init", fail)
    tracker = Tracker(TrackerConfig(), tmp_path, "name", {})
    tracker.log({"step": 1, "loss": 1.0}, step=1)
    tracker.close()
    assert capsys.readouterr().err.splitlines() == ["megaphone: wandb is off for this run: no space left"]


def test_a_resumed_run_keeps_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict] = []
    monkeypatch.setattr(wandb, "init", lambda **options: started.append(options))
    for _ in range(2):
        Tracker(TrackerConfig(), tmp_path, "name", {})
    assert started[0]["id"] == started[1]["id"] == (tmp_path / RUN_ID_FILE).read_text().strip()
    assert started[0]["mode"] == "offline" and started[0]["dir"] == str(tmp_path)


def test_a_disabled_tracker_writes_nothing(tmp_path: Path) -> None:
    tracker = Tracker(TrackerConfig(wandb="disabled"), tmp_path, "name", {})
    tracker.log({"loss": 1.0}, step=1)
    tracker.close()
    assert list(tmp_path.iterdir()) == []


def test_a_rank_that_ends_at_once_leaves_nothing_of_wandbs_behind(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from configs.schema import TrackerConfig
from runtime.exits import leave
from train.tracker import Tracker

tracker = Tracker(TrackerConfig(), Path(sys.argv[1]), "name", {})
tracker.log({"loss": 1.0}, 1)
tracker.close()
leave(0)
"""
    (tmp_path / "temporary").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(tmp_path / "temporary")}
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "run")], env=environment, check=True, timeout=120)
    deadline = time.monotonic() + 60  # wandb's own process sees that the rank is gone, and takes its socket away
    while left := list((tmp_path / "temporary").iterdir()):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    assert sorted(kept.name for kept in (tmp_path / "run" / "wandb").iterdir())[-1] == "run-id.txt"
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
