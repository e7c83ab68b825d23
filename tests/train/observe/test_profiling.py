"""Profiler windows of real runs on real ranks: by config, by signal to one rank, by a file; the curve is the same."""

from __future__ import annotations

import gzip
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from configs.compose import to_yaml
from configs.schema import Config
from tests.data_pipeline.synthetic import make_corpus
from tests.ranks import run_ranks
from tests.train.runs import metrics, run_config, stage, tiny_config

STEPS = 8
CURVE = ("step", "tokens", "loss", "grad_norm", "norm/update/trunk")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "corpus")


@pytest.fixture(scope="module")
def plain(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    return curve(run_config(config_of(tmp_path_factory.mktemp("plain"), corpus), 2))


def config_of(folder: Path, corpus: Path, **changes: Any) -> Config:
    settings = {"train__steps": STEPS, "observe__norms_every": 4, "observe__profile__steps": 2, **changes}
    return tiny_config(folder, corpus, **settings)


def curve(lines: list[dict[str, Any]]) -> list[list[Any]]:
    return [[line.get(key) for key in CURVE] for line in lines]


def windows(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "profiles").iterdir())


def recorded_steps(trace: Path) -> list[str]:
    with gzip.open(trace, "rt") as file:
        events = json.load(file)["traceEvents"]
    assert any(event.get("name") == "aten::mm" for event in events)
    return sorted({event["name"] for event in events if str(event.get("name")).startswith("ProfilerStep")})


def test_a_planned_window(corpus: Path, plain: list[list[Any]], tmp_path: Path) -> None:
    planned = {"observe__profile__start": 3, "observe__profile__ranks": [1]}
    lines = run_config(config_of(tmp_path / "run", corpus, **planned), 2)
    assert curve(lines) == plain
    assert windows(tmp_path / "run") == ["step-00000003-rank-1.json.gz", "step-00000003-rank-1.txt"]
    assert len(recorded_steps(tmp_path / "run/profiles/step-00000003-rank-1.json.gz")) == 2
    table = (tmp_path / "run/profiles/step-00000003-rank-1.txt").read_text()
    assert "aten::mm" in table and "Self CPU Mem" in table


def signalled_stage(config_file: str, rank: int, turn: int) -> int:
    """The stage, but `rank` sends itself SIGUSR2 as it enters its `turn`-th step."""
    from train.engines.megatron import MegatronEngine

    original, turns = MegatronEngine.train_step, iter(range(1, 1_000))

    def hit(self: MegatronEngine, *arguments: Any, **named: Any) -> Any:
        if next(turns) == turn and int(os.environ["RANK"]) == rank:
            os.kill(os.getpid(), signal.SIGUSR2)
        return original(self, *arguments, **named)

    MegatronEngine.train_step = hit  # type: ignore[method-assign]
    return stage(config_file)


def test_a_signal_to_one_rank_has_all_record_the_next_steps(
    corpus: Path, plain: list[list[Any]], tmp_path: Path
) -> None:
    config = config_of(tmp_path / "run", corpus)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(to_yaml(config))
    assert run_ranks(signalled_stage, 2, str(tmp_path / "run/config.yaml"), 1, 3) == [0, 0]
    assert curve(metrics(tmp_path / "run")) == plain
    traces = [f"step-00000005-rank-{rank}.json.gz" for rank in (0, 1)]  # the fourth step warms up
    assert [name for name in windows(tmp_path / "run") if name.endswith(".gz")] == traces
    assert len(recorded_steps(tmp_path / "run/profiles" / traces[0])) == 2


def test_a_file_in_the_run_folder_asks_for_a_window_which_the_end_of_the_run_may_cut_short(
    corpus: Path, plain: list[list[Any]], tmp_path: Path
) -> None:
    config = config_of(tmp_path / "run", corpus, observe__profile__steps=100)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/profile").touch()
    assert curve(run_config(config, 2)) == plain
    assert not (tmp_path / "run/profile").exists()
    recorded = recorded_steps(tmp_path / "run/profiles/step-00000002-rank-0.json.gz")
    assert {f"ProfilerStep#{number}" for number in range(1, STEPS)} <= set(recorded)  # 0 is the step that warmed up


def test_a_profile_that_cannot_be_written_does_not_end_the_run(
    corpus: Path, plain: list[list[Any]], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/profiles").write_text("a file where the folder should be")
    assert curve(run_config(config_of(tmp_path / "run", corpus, observe__profile__start=2), 2)) == plain
    assert (tmp_path / "run/profiles").is_file()
