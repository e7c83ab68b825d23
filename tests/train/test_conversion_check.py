"""Logits of a conversion: the same as transformers', and told apart where a weight is another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from checkpoints.conversion.engine import How, run
from checkpoints.conversion.wanted import Wanted, plan_job
from configs.schema import ParallelConfig
from tests.checkpoints.models import backbone, rewrite, tensors, write_model
from tests.ranks import run_ranks


def _agreements(native: str, folders: list[str]) -> list[Any]:
    from train.conversion_check import agreement

    return [agreement(Path(native), Path(folder)) for folder in folders]


def test_logits_are_transformers_and_a_changed_weight_is_seen(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source", backbone(tied_embeddings=False), torch.bfloat16)
    job, beside = plan_job(source, tmp_path / "native", Wanted(parallel=ParallelConfig(tensor=2)))
    native = run(job, tmp_path / "native", beside, How())
    other = write_model(tmp_path / "other", backbone(tied_embeddings=False), torch.bfloat16)
    changed = tensors(other)
    changed["model.layers.2.mlp.down_proj.weight"][5] += 0.5
    rewrite(other, changed)

    [(same, different)] = run_ranks(_agreements, 1, str(native), [str(source), str(other)])
    assert same.agree and same.cosine > 0.99999 and same.same_argmax == 1 and same.tokens == 127
    assert not different.agree and different.cosine < same.cosine
