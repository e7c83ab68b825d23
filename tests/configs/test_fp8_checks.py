"""Impossible products in fp8: each is refused in one line that names the keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.checks import check
from configs.compose import compose_stage
from configs.schema import Config, Fp8Config, Fp8Recipe
from runtime.exits import BadInput
from tests.configs.recipes import write_recipe

WORDS = ["train.precision=bf16", "train.fp8={}", "train.sequence_length=128"]
WORDS += ["backbone.hidden=64", "backbone.ffn=128", "backbone.heads=4", "backbone.kv_heads=2", "backbone.layers=4"]


def composed(folder: Path, *words: str) -> Config:
    """With `words` in the place of those of the same keys."""
    given = {word.partition("=")[0]: word for word in (*WORDS, *words)}
    return compose_stage(write_recipe(folder), "tiny", "pretrain", list(given.values()))


def test_settings_become_fp8(tmp_path: Path) -> None:
    config = composed(tmp_path, "train.fp8.bf16_last=2")
    check(config)
    assert config.train.fp8 == Fp8Config(Fp8Recipe.tensorwise, bf16_first=1, bf16_last=2)
    assert Config().train.fp8 is None


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["train.precision=fp32"], "train.fp8 needs train.precision=bf16"),
        (["engine=deepspeed"], "train.fp8: engine.name=deepspeed cannot"),
        (["stage.lora={rank: 4}"], "train.fp8: not built for stage.lora"),
        (["stage.objective=ppo"], "train.fp8: not built for stage.objective=ppo"),
        (["backbone.experts={count: 4, ffn: 32}"], "train.fp8: not built for backbone.experts"),
        (["train.fp8.bf16_first=-1"], "train.fp8.bf16_first=-1: has to be 0 or above"),
        (["train.fp8.bf16_first=5"], "train.fp8.bf16_first=5 is above backbone.layers / parallel.pipeline = 4"),
        (["train.fp8.bf16_first=3"], "leave no layer of backbone.layers=4"),
        (["backbone.hidden=72"], "backbone.hidden is 72, no multiple of 16"),
        (["backbone.ffn=136"], "backbone.ffn / parallel.tensor is 136, no multiple of 16"),
        (["train.sequence_length=120"], "over the ranks that share a pack is 120, no multiple of 16"),
        (["train.fp8.recipe=mxfp8", "backbone.ffn=144"], "train.fp8.recipe=mxfp8: .* is 144, no multiple of 32"),
        (["train.fp8.recipe=delayed"], "delayed"),
    ],
)
def test_what_cannot_be_is_one_line(words: list[str], line: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=line):
        check(composed(tmp_path, *words))
