"""Impossible wishes to measure, refused in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from configs.checks import check
from configs.compose import compose_stage
from runtime.exits import BadInput
from tests.configs.recipes import write_recipe


@pytest.mark.parametrize(
    ("word", "processes", "said"),
    [
        ("observe.norms_every=-1", None, "observe.norms_every=-1: has to be 0 or above"),
        ("observe.ranks_every=-5", None, "observe.ranks_every=-5: has to be 0 or above"),
        ("observe.peak_teraflops=0", None, "observe.peak_teraflops=0.0: has to be above 0, or null"),
        ("observe.profile.steps=0", None, "observe.profile.steps=0: has to be above 0"),
        ("observe.profile.start=101", None, "observe.profile.start=101: no step of 1 to train.steps=100"),
        ("observe.profile.start=0", None, "observe.profile.start=0: no step of 1"),
        ("observe.profile.ranks=[0,4]", 4, "observe.profile.ranks: no rank 4; there are 0 to 3"),
        ("observe.profile.ranks=[-1]", None, "observe.profile.ranks: no rank -1"),
    ],
)
def test_refused(word: str, processes: int | None, said: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    config = compose_stage(recipe, "tiny", "pretrain", ["train.steps=100", "optimizer.warmup_steps=0", word])
    with pytest.raises(BadInput) as caught:
        check(config, processes)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    check(replace(config, observe=type(config.observe)()), processes)
