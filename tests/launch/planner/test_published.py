"""The time model beside throughput that others published."""

from __future__ import annotations

from statistics import median

import pytest
import yaml

from tests.launch.planner.published import FILE, full_flops, read

ROWS = read()


def test_held_out_rows_are_within_the_aim() -> None:
    errors = [abs(row.error) for row in ROWS if not row.fitted]
    assert len(errors) >= 20
    assert median(errors) < 0.10
    assert max(errors) < 0.25


def test_rows_of_models_that_nothing_was_fitted_to_are_too() -> None:
    fitted = {row.model for row in ROWS if row.fitted}
    errors = [abs(row.error) for row in ROWS if row.model not in fitted]
    assert len(errors) >= 20
    assert median(errors) < 0.10


def test_every_row_says_where_it_comes_from() -> None:
    written = yaml.safe_load(FILE.read_text())
    assert {row["source"] for row in written["rows"]} == set(written["sources"])
    assert all(source["url"].startswith("https://") and source["where"] for source in written["sources"].values())


def testfull_flops_are_those_of_the_source() -> None:
    """NVIDIA's own sum for Llama 3.1 8B (dgxc-25.04, "Notes"): 4.74e14 for a row of 8,192 tokens."""
    llama = next(row for row in ROWS if row.model == "llama3_8b")
    assert full_flops(llama.config, llama.rows) * 8192 == pytest.approx(4.74e14, rel=2e-3)
