"""One loss curve on every topology: the same data, the same seed, ranks as real processes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.data_pipeline.synthetic import make_corpus
from tests.train.runs import run_config, tiny_config

# name: (processes, parallel settings)
TOPOLOGIES: dict[str, tuple[int, dict[str, Any]]] = {
    "TP2": (2, {"tensor": 2}),
    "TP2+SP": (2, {"tensor": 2, "sequence": True}),
    "PP2": (2, {"pipeline": 2}),
    "TP2xPP2": (4, {"tensor": 2, "pipeline": 2}),
    "DP2": (2, {}),
    "DP2 distributed optimiser": (2, {"distributed_optimizer": True}),
}
LOSS, NORM = 1e-4, 1e-3  # relative


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    folder = tmp_path_factory.mktemp("reference")
    make_corpus(folder / "corpus")
    config = tiny_config(folder / "single", folder / "corpus", backbone__tied_embeddings=request.param)
    return request.param, folder / "corpus", run_config(config)


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_the_curve_is_that_of_a_single_process(name: str, reference: tuple[Any, ...], tmp_path: Path) -> None:
    tied, corpus, expected = reference
    world, parallel = TOPOLOGIES[name]
    changes = {f"parallel__{key}": value for key, value in parallel.items()}
    config = tiny_config(tmp_path / "run", corpus, backbone__tied_embeddings=tied, **changes)
    curve = run_config(config, world)
    assert [line["step"] for line in curve] == list(range(1, 21))
    for ours, single in zip(curve, expected, strict=True):
        for key in (key for key in single if key.startswith("loss")):
            assert ours[key] == pytest.approx(single[key], rel=LOSS), (ours["step"], key)
        assert ours["grad_norm"] == pytest.approx(single["grad_norm"], rel=NORM), ours["step"]
        assert ours["tokens"] == single["tokens"]
    assert expected[-1]["loss"] < expected[0]["loss"]


def test_bf16_with_fp32_main_parameters_follows_the_fp32_curve(reference: tuple[Any, ...], tmp_path: Path) -> None:
    """With the distributed optimiser over two ranks and without, and resumed: bf16 rounds at 2^-8."""
    tied, corpus, expected = reference
    changes = {"backbone__tied_embeddings": tied, "train__precision": "bf16", "train__checkpoint_every": 10}
    single = run_config(tiny_config(tmp_path / "single", corpus, **changes))
    for ours, exact in zip(single, expected, strict=True):
        assert ours["loss"] == pytest.approx(exact["loss"], rel=2e-2)
    shared = tiny_config(tmp_path / "shared", corpus, parallel__distributed_optimizer=True, **changes)
    whole = run_config(shared, 2)
    for ours, one in zip(whole, single, strict=True):
        assert ours["loss"] == pytest.approx(one["loss"], rel=1e-2)
    shutil.rmtree(tmp_path / "shared/checkpoints/step-00000020")
    assert [line["loss"] for line in run_config(shared, 2)] == [line["loss"] for line in whole]
