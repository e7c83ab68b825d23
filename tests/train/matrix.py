"""The topology matrix: rows from `topologies.yaml`, each run and compared with a single process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.batch import Batch, Pack, collate
from tests.data_pipeline.synthetic import make_corpus
from tests.train.runs import run_config, stage, tiny_config

LOSS, NORM = 1e-4, 1e-3
Curve = list[dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """One topology: `both` are settings of it and of its single-process reference, `row` its own. `unpacked`: each
    sample is a forward pass of its own, where the reference has packs. loss, norm: largest relative differences that
    losses and gradient norms may have; tighter ones for a row whose likely faults are smaller than the usual limits."""

    name: str
    processes: int
    row: dict[str, Any]
    both: dict[str, Any] = field(default_factory=dict)
    unpacked: bool = False
    loss: float = LOSS
    norm: float = NORM


def rows() -> list[Row]:
    return [Row(**entry) for entry in yaml.safe_load(Path(__file__).with_name("topologies.yaml").read_text())]


class Matrix:
    """Runs rows for some steps each under `folder`; start checkpoints and single-process references are made once for
    all rows."""

    def __init__(self, folder: Path, steps: int) -> None:
        self._folder = folder
        self._steps = steps
        self._corpus = make_corpus(folder / "corpus", heard=True)
        self._references: dict[str, tuple[Path, Curve]] = {}

    def run(self, row: Row) -> tuple[Curve, Curve]:
        """Curves of a row and of its reference, steps from one native checkpoint on the same data."""
        start, expected = self._reference(row.both)
        program = unpacked_stage if row.unpacked else stage
        settings = {**row.both, **row.row}
        return self._train(row.name.replace(" ", "_"), settings, row.processes, start, program), expected

    def _reference(self, both: dict[str, Any]) -> tuple[Path, Curve]:
        key = json.dumps(both, sort_keys=True)
        if key not in self._references:
            name = f"reference-{len(self._references)}"
            self._train(f"{name}-start", {**both, "train.steps": 2, "optimizer.lr": 1e-6}, 1, None)
            start = self._folder / f"{name}-start/checkpoints/step-00000002"
            self._references[key] = start, self._train(name, both, 1, start)
        return self._references[key]

    def _train(
        self,
        name: str,
        settings: dict[str, Any],
        processes: int,
        start: Path | None,
        program: Callable[[str], int] = stage,
    ) -> Curve:
        given = {"train.steps": self._steps, **({"stage.weights": str(start)} if start else {}), **settings}
        changes = {key.replace(".", "__"): value for key, value in given.items()}
        return run_config(tiny_config(self._folder / name, self._corpus, **changes), processes, program=program)


def unpacked_stage(config_file: str) -> int:
    """The stage, but with one sample a forward pass."""
    from train.loop import Stage

    def one_by_one(running: Stage, packs: list[Pack]) -> list[Batch]:
        return [collate([part], running.objective.sources) for pack in packs for part in samples_of(pack)]

    Stage._micro_batches = one_by_one
    return stage(config_file)


def samples_of(pack: Pack) -> list[Pack]:
    """Each sample of a pack as a pack of its own, without padding."""
    ends = list(accumulate(pack.lengths))
    parts = []
    for end, length, key in zip(ends, pack.lengths, pack.keys, strict=False):
        arrays = ("tokens", "labels", "loss_weight", "label_modality")
        cut = {name: getattr(pack, name)[end - length : end] for name in arrays}
        parts.append(replace(pack, **cut, lengths=(length,), keys=(key,), padding=0))
    return parts


def differences(curve: Curve, expected: Curve) -> tuple[float, float]:
    """Largest relative differences of any loss term and of the gradient norm, over all steps."""
    losses = [
        abs(ours[key] / theirs[key] - 1)
        for ours, theirs in zip(curve, expected, strict=True)
        for key in theirs
        if key.startswith("loss")
    ]
    norms = [abs(ours["grad_norm"] / theirs["grad_norm"] - 1) for ours, theirs in zip(curve, expected, strict=True)]
    return max(losses), max(norms)


def group_differences(curve: Curve, expected: Curve) -> float:
    """Largest relative difference of any group's norm, of gradients, parameters and updates; 0 where none were
    measured."""
    return max(
        (
            abs(ours[key] / theirs[key] - 1)
            for ours, theirs in zip(curve, expected, strict=True)
            for key in theirs.keys() & ours.keys()
            if key.startswith("norm/")
        ),
        default=0.0,
    )
