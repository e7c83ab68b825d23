"""Audio rows laid among the text rows in a model that ranks share, against float64 numpy on the whole matrix."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from checkpoints.vocabulary_surgery import spread
from configs.schema import BackboneConfig, Config, ParallelConfig
from tests.ranks import run_ranks
from tests.train.runs import tiny_config

ROWS, TEXT, FIRST = 128, 70, 80
POINTS = torch.randn(40, 32, generator=torch.Generator().manual_seed(3))


def placed(config: Config) -> dict[str, Any]:
    """Vocabulary matrices before and after, this rank's part of each."""
    from train.engines import process_groups
    from train.engines.build import build_engine
    from train.objectives.next_token import NextToken

    engine = build_engine(config, ROWS, NextToken(("text",)), process_groups.join(config.parallel))
    models = engine.models if hasattr(engine, "models") else [engine.model]

    def matrices() -> dict[str, np.ndarray]:
        return {
            name.rpartition("module.")[2]: parameter.detach().clone().numpy()
            for model in models
            for name, parameter in model.named_parameters()
            if name.endswith(("word_embeddings.weight", "output_layer.weight"))
        }

    before = matrices()
    engine.place_rows(FIRST, partial(spread, POINTS), TEXT)
    after = matrices()
    process_groups.leave()
    return {name: (before[name], after[name]) for name in before}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("parallel", [ParallelConfig(), ParallelConfig(tensor=2), ParallelConfig(pipeline=2)])
def test_rows_have_the_text_rows_mean_and_covariance(parallel: ParallelConfig, tied: bool, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tmp_path)
    config.parallel = parallel
    config.backbone = BackboneConfig(
        name="test", layers=2, hidden=32, ffn=64, heads=4, kv_heads=2, tokenizer="none", tied_embeddings=tied
    )
    ranks = run_ranks(placed, parallel.tensor * parallel.pipeline, config)
    names = {name for rank in ranks for name in rank}
    assert any("word_embeddings" in name for name in names)
    assert tied or any("output_layer" in name for name in names)
    for name in names:
        parts = [rank[name] for rank in ranks if name in rank]
        before, after = (np.concatenate([part[which] for part in parts]) for which in (0, 1))
        text = before[:TEXT].astype(np.float64)
        covariance = np.cov(text, rowvar=False, bias=True)
        factor = np.linalg.cholesky(covariance + 1e-6 * covariance.diagonal().mean() * np.eye(32))
        expected = text.mean(0) + POINTS.double().numpy() @ factor.T
        np.testing.assert_allclose(after[FIRST : FIRST + 40], expected, rtol=0, atol=1e-6)
        assert (after[:FIRST] == before[:FIRST]).all() and (after[FIRST + 40 :] == before[FIRST + 40 :]).all()
