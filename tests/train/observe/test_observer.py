"""What a real run writes down about itself: a schema, and sums that have to hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.data_pipeline.synthetic import make_corpus
from tests.train.runs import run_config, tiny_config
from train.observe.phases import CHECKPOINT, PHASES, VALIDATION

SOURCES = ("continuation", "interleaved", "text", "tts")
EVERY_STEP = {
    *("step", "tokens", "audio_hours", "loss", "grad_norm", "seconds", "tokens_per_second", "audio_hours_per_second"),
    *("teraflops", "mfu", "hfu", "padding", "data_wait", "queue"),
    *(f"time/{phase}" for phase in PHASES),
    *(f"source/{name}" for name in SOURCES),
}
COMPARED = {f"ranks/{phase}/{figure}" for phase in PHASES for figure in ("min", "mean", "max")} | {"memory/host"}
NORMS = {f"norm/{kind}/{group}" for kind in ("grad", "param", "update") for group in ("embedding", "head", "trunk")}


@pytest.mark.parametrize("changes", [{"parallel__pipeline": 2}, {"parallel__distributed_optimizer": True}])
def test_a_run_describes_every_step(changes: dict[str, object], tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    settings = {
        "train__steps": 6,
        "checkpoint__every": 2,
        "train__validate_every": 3,
        "backbone__tied_embeddings": False,
    }
    settings |= {"observe__ranks_every": 2, "observe__norms_every": 3, "observe__peak_teraflops": 0.5}
    lines = run_config(tiny_config(tmp_path / "run", corpus, **settings, **changes), 2)
    for line in lines:
        step, keys = line["step"], set(line)
        assert keys >= EVERY_STEP
        assert (keys >= COMPARED) is (step % 2 == 0) and (keys >= NORMS) is (step % 3 == 0)
        times = {phase: line[f"time/{phase}"] for phase in PHASES}
        # "other" is what is left; were any moment counted twice, the others alone would be more than the step
        assert min(times.values()) >= 0 and sum(times.values()) == pytest.approx(line["seconds"], rel=1e-9)
        assert min(times["forward"], times["backward"], times["optimizer"], times["communication"]) > 0
        assert (f"time/{CHECKPOINT}" in keys) is (step > 1)
        assert line.get(f"time/{CHECKPOINT}", 0) > 1e-3 or step not in (3, 5)  # after steps 2 and 4 there was a save
        assert (f"time/{VALIDATION}" in keys) is (step in (1, 4))
        assert sum(line[f"source/{name}"] for name in SOURCES) == pytest.approx(1)
        assert line["mfu"] == line["hfu"] == pytest.approx(line["teraflops"] / 0.5)
        for phase in PHASES if step % 2 == 0 else ():
            low, mean, high = (line[f"ranks/{phase}/{figure}"] for figure in ("min", "mean", "max"))
            assert low <= mean <= high and mean == pytest.approx((low + high) / 2)
    assert lines[1]["memory/host"] > 0.05  # a process with torch in it
    spent = json.loads((tmp_path / "run/results.json").read_text())["seconds"]
    for phase in PHASES:
        assert spent[phase] == pytest.approx(sum(line[f"time/{phase}"] for line in lines))
    assert spent[CHECKPOINT] > sum(line.get(f"time/{CHECKPOINT}", 0) for line in lines)  # and that of the last step


def test_what_is_measured_changes_nothing(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    curves = []
    for name, every in (("without", 0), ("with", 1)):
        settings = {"observe__ranks_every": every, "observe__norms_every": every, "train__steps": 4}
        lines = run_config(tiny_config(tmp_path / name, corpus, **settings), 2)
        curves.append([(line["loss"], line["grad_norm"]) for line in lines])
        assert any(key.startswith(("norm/", "memory/", "ranks/")) for key in lines[-1]) is bool(every)
    assert curves[0] == curves[1]
