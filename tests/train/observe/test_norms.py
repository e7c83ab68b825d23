"""Norms by group against norms of whole tensors, taken from checkpoints, where nothing is sharded or doubled.

That they are the same on every topology is one of the things that tests/train/test_topologies.py compares.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from checkpoints.formats.native import NativeReader
from tests.data_pipeline.synthetic import make_corpus
from tests.train.runs import run_config, tiny_config

LAYERS = 4


def norm(tensors: Iterable[torch.Tensor]) -> float:
    return float(torch.cat([tensor.double().flatten() for tensor in tensors]).norm())


@pytest.mark.parametrize(
    ("world", "changes"),
    [
        (1, {}),
        (2, {"parallel__tensor": 2, "parallel__sequence": True}),
        (2, {"parallel__pipeline": 2}),
        (2, {"parallel__distributed_optimizer": True}),
        (2, {"parallel__distributed_optimizer": True, "train__precision": "bf16"}),
    ],
    ids=["one rank", "TP2 + SP", "PP2", "distributed optimiser", "distributed optimiser, bf16"],
)
def test_parameters_and_updates(world: int, changes: dict[str, object], tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    settings = {"train__steps": 3, "checkpoint__every": 1, "checkpoint__keep": 0, "observe__norms_every": 1}
    settings |= {"observe__norms_by_layer": True, "optimizer__weight_decay": 0.5}
    lines = run_config(tiny_config(tmp_path / "run", corpus, **settings, **changes), world)
    before, after = (
        whole(tmp_path / f"run/checkpoints/step-{step:08d}", "bf16" in changes.values()) for step in (2, 3)
    )
    measured = {key: value for key, value in lines[2].items() if key.startswith("norm/")}
    groups = {
        "embedding": [name for name in after if name.startswith("embedding")],
        "trunk": [name for name in after if name.startswith("decoder")],
    }
    for group, names in groups.items():
        assert measured[f"norm/param/{group}"] == pytest.approx(norm(after[name] for name in names), rel=1e-5)
        moved = norm(after[name].double() - before[name].double() for name in names)
        assert measured[f"norm/update/{group}"] == pytest.approx(moved, rel=1e-3)
    for layer in range(LAYERS):
        own = [after[name][layer] for name in after if name.startswith("decoder.layers.")]
        assert measured[f"norm/param/layer-{layer:03d}"] == pytest.approx(norm(own), rel=1e-5)
    layers = [measured[f"norm/grad/layer-{layer:03d}"] for layer in range(LAYERS)]
    assert sum(value**2 for value in layers) <= measured["norm/grad/trunk"] ** 2
    assert len(measured) == 3 * (len(groups) + LAYERS)


def whole(checkpoint: Path, bf16: bool) -> dict[str, torch.Tensor]:
    """Parameters of a native checkpoint by name, layers stacked; in bf16 their fp32 masters."""
    reader = NativeReader(checkpoint / "tensors")
    prefix = "optimizer.state.fp32_param.model." if bf16 else "model."
    return {name.removeprefix(prefix): reader.read(name) for name in reader.tensors if name.startswith(prefix)}
