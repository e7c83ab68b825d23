"""Rows kept, begun and moved, against float64 numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints import vocabulary_surgery as surgery
from checkpoints.vocabulary_surgery import RowPlan, Run
from configs.schema import NewRows
from runtime.exits import BadInput

GENERATOR = np.random.default_rng(5)
MIXED = GENERATOR.standard_normal((300, 8)) @ GENERATOR.standard_normal((8, 8)) + 3.0  # columns go together


def test_drawn_rows_have_the_trained_rows_mean_and_full_covariance() -> None:
    trained = torch.from_numpy(MIXED).float()
    mean, covariance = surgery.moments(trained)
    exact = trained.double().numpy()
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(exact, rowvar=False, bias=True), rtol=1e-9)

    drawn = surgery.begin_rows(trained, 40_000, NewRows.covariance, 1, "x").double().numpy()
    assert drawn.shape == (40_000, 8)
    found, wanted = np.cov(drawn, rowvar=False), np.cov(exact, rowvar=False, bias=True)
    scale = np.sqrt(np.outer(wanted.diagonal(), wanted.diagonal()))
    assert np.abs((found - wanted) / scale).max() < 0.03
    assert np.abs((drawn.mean(0) - exact.mean(0)) / np.sqrt(wanted.diagonal())).max() < 0.03
    # Apart from one another, and so correlated that column by column they could not be.
    assert np.abs(np.corrcoef(exact, rowvar=False) - np.eye(8)).max() > 0.3


def test_the_formula_to_the_last_digits() -> None:
    points = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    mean, covariance = surgery.moments(torch.from_numpy(MIXED))
    exact = np.cov(MIXED, rowvar=False, bias=True)
    factor = np.linalg.cholesky(exact + 1e-6 * exact.diagonal().mean() * np.eye(8))
    expected = MIXED.mean(0) + points.double().numpy() @ factor.T
    np.testing.assert_allclose(surgery.spread(points, mean, covariance), expected, rtol=1e-10)


def test_fewer_rows_than_columns_and_rows_all_alike_are_no_failure() -> None:
    few = surgery.begin_rows(torch.randn(3, 8), 50, NewRows.covariance, 0, "x")
    assert few.isfinite().all() and few.std() > 0
    same = surgery.begin_rows(torch.ones(4, 3), 5, NewRows.covariance, 0, "x")
    torch.testing.assert_close(same, torch.ones(5, 3), rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mean_is_rounded_once(dtype: torch.dtype) -> None:
    trained = torch.from_numpy(MIXED).to(dtype)
    rows = surgery.begin_rows(trained, 4, NewRows.mean, 0, "x")
    assert rows.dtype == dtype and torch.equal(rows[0], torch.from_numpy(trained.double().numpy().mean(0)).to(dtype))
    assert torch.equal(rows[0], rows[3])


def test_seed_and_name_fix_what_is_drawn() -> None:
    trained = torch.from_numpy(MIXED)
    first, again, seed, name = (
        surgery.begin_rows(trained, 4, NewRows.covariance, *which) for which in ((1, "x"), (1, "x"), (2, "x"), (1, "y"))
    )
    assert torch.equal(first, again) and not torch.equal(first, seed) and not torch.equal(first, name)


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_every_row_is_kept_or_new_and_kept_ones_keep_their_bits(data: st.DataObject) -> None:
    held, rows = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 16))
    targets = data.draw(st.lists(st.integers(0, rows - 1), unique=True, max_size=min(held, rows)))
    sources = data.draw(st.permutations(range(held)))[: len(targets)]
    plan = RowPlan(rows, tuple(Run(new, old, 1) for new, old in zip(targets, sources, strict=True)), held)
    before = torch.arange(held * 2.0).view(held, 2) + 1
    after = surgery.operate(before, plan, NewRows.covariance, 0, "x")
    moment = surgery.operate_on_moments(before, plan)
    masters = surgery.operate_on_masters(before + 0.5, plan, after)
    new = {index for first, end in plan.new() for index in range(first, end)}
    assert new == set(range(rows)) - set(targets) and plan.new_count == len(new)
    for target, source in zip(targets, sources, strict=True):
        assert torch.equal(after[target], before[source]) and torch.equal(moment[target], before[source])
        assert torch.equal(masters[target], before[source] + 0.5)
    for index in new:
        assert not moment[index].any() and torch.equal(masters[index], after[index])


def test_copies_go_by_turns() -> None:
    before = torch.arange(8.0).view(4, 2)
    plan = RowPlan(7, (Run(0, 0, 2),), 4, copied=(3, 0))
    after = surgery.operate(before, plan, NewRows.mean, 0, "x")
    assert torch.equal(after, before[[0, 1, 3, 0, 3, 0, 3]])
    with pytest.raises(BadInput, match="none with id 4"):
        surgery.operate(before, RowPlan(7, (), 4, copied=(4,)), NewRows.mean, 0, "x")


@given(used=st.integers(1, 10_000), multiple=st.integers(1, 300), tensor=st.integers(1, 16))
def test_padding_is_the_least_that_all_divide(used: int, multiple: int, tensor: int) -> None:
    rows = surgery.padded(used, multiple, tensor)
    assert rows >= used and rows % multiple == 0 and rows % tensor == 0
    assert not any(
        candidate % multiple == 0 and candidate % tensor == 0 for candidate in range(used, min(rows, used + 400))
    )


def described(specials: list[str], **books: int) -> dict[str, object]:
    start = 10 + len(specials)
    ranges = {"text": [0, 10], "special": [10, start]}
    for name, size in books.items():
        ranges[name] = [start, start + size]
        start += size
    return {"text_size": 10, "specials": specials, "ranges": ranges}


def test_between_vocabularies_rows_follow_their_names() -> None:
    old, new = described(["a", "b"], x=3, y=4), described(["b", "c", "a"], z=2, y=4, x=5)
    plan = surgery.plan_between(old, new, 32, 19)
    kept = {run.new + step: run.old + step for run in plan.kept for step in range(run.count)}
    assert kept == {**{i: i for i in range(10)}, 10: 11, 12: 10, 15: 15, 16: 16, 17: 17, 18: 18}
    with pytest.raises(BadInput, match="other tokenizers"):
        surgery.plan_between({**old, "text_size": 9}, new, 32, 19)
    with pytest.raises(BadInput, match="do not hold"):
        surgery.plan_between(old, new, 16, 19)


def test_rows_in_use_never_go() -> None:
    for used, rows, held in ((5, 4, 8), (9, 12, 8), (0, 4, 8)):
        with pytest.raises(BadInput, match="in use"):
            surgery.plan_rows(used, rows, held)
