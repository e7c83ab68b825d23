"""One loss curve on every topology: the same data, the same checkpoint to start from, ranks as real processes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.data_pipeline.synthetic import make_corpus
from tests.train.matrix import Matrix, Row, differences, group_differences, rows
from tests.train.runs import run_config, tiny_config

STEPS = 8  # the benchmark goes on to 12: what a row gets wrong, it gets wrong in its first updates
OVERLAPPED = {
    "parallel__distributed_optimizer": True,
    "parallel__overlap_gradients": True,
    "parallel__overlap_parameters": True,
}


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    return Matrix(tmp_path_factory.mktemp("matrix"), STEPS)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.name)
def test_the_curve_is_that_of_a_single_process(row: Row, matrix: Matrix) -> None:
    curve, expected = matrix.run(row)
    assert [line["step"] for line in curve] == list(range(1, STEPS + 1))
    loss, norm = differences(curve, expected)
    assert loss < row.loss
    assert norm < row.norm
    assert group_differences(curve, expected) < row.norm
    assert [line["tokens"] for line in curve] == [line["tokens"] for line in expected]
    routed = [[sum(line.get("experts/tokens", ())) for line in lines] for lines in (curve, expected)]
    assert routed[0] == routed[1], "a token was counted twice, or not at all"
    assert expected[-1]["loss"] < expected[0]["loss"]
    if "audio missing" in row.name:
        silent = [[all(key.startswith("text/") for key in keys) for keys in line["samples"]] for line in curve]
        assert any(len(set(ranks)) == 2 for ranks in silent), "every rank had audio in every step, or none had"
    for line in curve:
        assert min(line["time/forward"], line["time/backward"]) > 0
        squares = [norm**2 for key, norm in line.items() if key.startswith("norm/grad/")]
        assert not squares or sum(squares) == pytest.approx(line["grad_norm"] ** 2, rel=1e-5), "a group is missing"


def test_bf16_with_fp32_main_parameters_follows_the_fp32_curve(tmp_path: Path) -> None:
    """With the distributed optimiser over two ranks and without, on overlapped interleaved pipelines, and resumed: bf16
    rounds at 2^-8."""
    corpus = make_corpus(tmp_path / "corpus")
    changes: dict[str, Any] = {"train__steps": 12}
    expected = run_config(tiny_config(tmp_path / "fp32", corpus, **changes))
    changes |= {"train__precision": "bf16", "checkpoint__every": 6}
    single = run_config(tiny_config(tmp_path / "single", corpus, **changes))
    for ours, exact in zip(single, expected, strict=True):
        assert ours["loss"] == pytest.approx(exact["loss"], rel=2e-2)
    shared = tiny_config(tmp_path / "shared", corpus, parallel__distributed_optimizer=True, **changes)
    whole = run_config(shared, 2)
    interleaved = {"parallel__pipeline": 2, "parallel__virtual_pipeline": 2}
    spread = tiny_config(tmp_path / "spread", corpus, **changes, **interleaved, **OVERLAPPED)
    for ours, theirs, one in zip(whole, run_config(spread, 4), single, strict=True):
        assert ours["loss"] == pytest.approx(one["loss"], rel=1e-2)
        assert theirs["loss"] == pytest.approx(one["loss"], rel=1e-2)
        assert theirs["grad_norm"] == pytest.approx(one["grad_norm"], rel=5e-2)
    shutil.rmtree(tmp_path / "shared/checkpoints/step-00000012")
    assert [line["loss"] for line in run_config(shared, 2)] == [line["loss"] for line in whole]
