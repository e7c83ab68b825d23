"""A short campaign: every kind of fault once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.faults.campaign import campaign, summary, table
from tests.faults.plan import Kind, plan


def test_a_plan_is_its_seeds_and_has_every_kind_equally_often() -> None:
    assert plan(1, 30, 200, 2) == plan(1, 30, 200, 2) != plan(2, 30, 200, 2)
    faults = plan(1, 30, 200, 2)
    assert Counter(fault.kind for fault in faults) == dict.fromkeys(Kind, 5)
    assert [fault.step for fault in faults] == sorted({fault.step for fault in faults})


@pytest.mark.timeout(600)
def test_after_every_kind_of_fault_curve_and_parameters_are_those_of_an_undisturbed_run(tmp_path: Path) -> None:
    met, different, _ = campaign(tmp_path, faults=6, steps=50, seed=1)
    assert different == []
    codes = {each.fault.kind: each.exit_code for each in met}
    assert codes == {
        Kind.kill: None,
        Kind.terminate: 75,
        Kind.hang: None,
        Kind.poison: None,
        Kind.full: 2,
        Kind.truncate: 75,
    }
    assert table(met).count("\n") == 7 and summary(met).count("\n") == 7
