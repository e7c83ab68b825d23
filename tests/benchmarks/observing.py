"""Prints what it costs a step to be observed, at the quickstart's shape on two tensor-parallel ranks: seconds inside of
what measures, as a share of the steps' seconds."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from configs.compose import to_yaml
from tests.data_pipeline.synthetic import make_corpus
from tests.ranks import run_ranks
from tests.train.runs import metrics, stage, tiny_config

STEPS = 40


def observed_stage(config_file: str) -> dict[str, float]:
    """The stage; returns the seconds that went into each measuring call."""
    from train.observe.megatron_norms import GroupNorms
    from train.observe.observer import Observer
    from train.observe.stopwatch import Stopwatch

    spent: dict[str, float] = {}

    def timed(owner: Any, name: str, what: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def call(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return original(*arguments, **named)
            finally:
                spent[what] = spent.get(what, 0.0) + time.perf_counter() - began

        setattr(owner, name, call)

    for name in ("begin", "start", "stop", "read"):
        timed(Stopwatch, name, "stopwatch")
    timed(GroupNorms, "gradients", "norms by group")
    timed(GroupNorms, "parameters", "norms by group")
    timed(Observer, "before_step", "opening profiler windows")
    timed(Observer, "after_step", "adding up, comparing ranks, stragglers, memory")
    assert stage(config_file) == 0
    return spent


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        corpus = make_corpus(Path(folder) / "corpus")
        shape = {"layers": 4, "hidden": 256, "ffn": 704, "heads": 4, "kv_heads": 2, "init_std": 0.05}
        settings = {f"backbone__{key}": value for key, value in shape.items()} | {
            "train__sequence_length": 1024,
            "train__global_batch": 2,
            "train__steps": STEPS,
            "loader__lanes": 2,
            "parallel__tensor": 2,
        }
        config = tiny_config(Path(folder) / "run", corpus, **settings)
        Path(config.run.folder).mkdir()
        file = Path(config.run.folder) / "config.yaml"
        file.write_text(to_yaml(config))
        spent = run_ranks(observed_stage, 2, str(file), timeout=600)[0]
        lines = metrics(Path(config.run.folder))[1:]  # the first step compiles and warms up
    seconds = sum(line["seconds"] for line in lines)
    print(f"{len(lines)} steps of {seconds / len(lines):.3f} s")
    for what, share in sorted(spent.items()):
        print(f"{what}: {1000 * share / STEPS:.2f} ms a step, {100 * share / seconds:.2f} %")


if __name__ == "__main__":
    main()
