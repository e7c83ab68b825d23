"""Norms of queries and keys: each tensor-parallel rank sees its own heads, so their gradients have to be summed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.compose import to_yaml
from tests.data_pipeline.synthetic import make_corpus
from tests.ranks import run_ranks
from tests.train.runs import tiny_config

TENSOR = {"parallel__tensor": 2}
DEEPSPEED = {"engine__name": "deepspeed", "engine__zero_stage": 0}
SPLIT = {
    "TP2": TENSOR,
    "TP2 + SP": {**TENSOR, "parallel__sequence": True},
    "DeepSpeed TP2": {**TENSOR, **DEEPSPEED},
}


def gradients(config_file: str) -> dict[str, np.ndarray]:
    """Reduced gradients of the norms of queries and keys in a first step, which is not taken."""
    from configs.compose import load_config
    from runtime.signals import StopFlag
    from train.loop import _joined

    seen: dict[str, np.ndarray] = {}
    with _joined(load_config(Path(config_file)), StopFlag()) as stage:
        engine: Any = stage.engine
        model = engine.models[0] if hasattr(engine, "models") else engine.model

        def look(_: Any) -> bool:
            for name, parameter in model.named_parameters():
                if "q_layernorm" in name or "k_layernorm" in name:
                    seen[name] = getattr(parameter, "main_grad", parameter.grad).double().numpy().copy()
            return False

        engine.train_step(stage._micro_batches(stage.loader.next_step()), 1e-3, [], look)
        stage.loader.close()
    return {name.removeprefix("module."): gradient for name, gradient in seen.items()}


def of_ranks(folder: Path, corpus: Path, processes: int, changes: dict[str, Any]) -> list[dict[str, np.ndarray]]:
    settings = {"backbone__qk_norm": True, "export__huggingface": False, "optimizer__clip_grad": 0.0, **changes}
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(tiny_config(folder, corpus, **settings)))
    return run_ranks(gradients, processes, str(folder / "config.yaml"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "corpus")


@pytest.fixture(scope="module")
def alone(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Of one rank that has all heads."""
    return of_ranks(tmp_path_factory.mktemp("alone") / "run", corpus, 1, {})[0]


@pytest.mark.parametrize("topology", SPLIT)
def test_every_rank_has_the_gradient_that_one_rank_alone_has(
    topology: str, alone: dict[str, np.ndarray], corpus: Path, tmp_path: Path
) -> None:
    assert len(alone) == 8  # of four layers, queries' and keys'
    for rank in of_ranks(tmp_path / "run", corpus, 2, SPLIT[topology]):
        for name, expected in alone.items():
            largest = np.abs(expected).max()
            assert largest > 1e-6
            np.testing.assert_allclose(rank[name], expected, rtol=1e-3, atol=1e-5 * largest, err_msg=name)
