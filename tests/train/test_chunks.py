"""A rank's model chunks outside of training steps: first weights, validation and logits on every kind of pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from checkpoints.formats.native import NativeReader
from checkpoints.manifest import MODEL_PREFIX
from configs.compose import load_config
from tests.data_pipeline.synthetic import make_corpus
from tests.ranks import run_ranks
from tests.train.runs import run_config, tiny_config
from tests.train.test_resume import write

ROWS = 256
INTERLEAVED = {"parallel__pipeline": 2, "parallel__virtual_pipeline": 2}
OVERLAPPED = {
    "parallel__distributed_optimizer": True,
    "parallel__overlap_gradients": True,
    "parallel__overlap_parameters": True,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "corpus")


def logits_of_random_weights(config_file: str) -> np.ndarray | None:
    from data_pipeline.batch import Batch
    from data_pipeline.chunks import chunk_of
    from train.engines import process_groups
    from train.engines.megatron import MegatronEngine
    from train.objectives.next_token import NextToken

    config = load_config(Path(config_file))
    device = process_groups.join(config.parallel)
    engine = MegatronEngine(config, ROWS, NextToken(("text", "audio")), device)
    length = config.train.sequence_length
    numbers = torch.arange(length)[None]
    batch = Batch(
        tokens=numbers * 7 % ROWS,
        labels=numbers,
        loss_weight=torch.ones(1, length),
        positions=numbers,
        label_modality=torch.zeros(1, length, dtype=torch.int8),
        cu_seqlens=torch.tensor([0, 40, length], dtype=torch.int32),
        longest=length - 40,
        chunks=(chunk_of([40, length - 40], 0, length),),
    )
    logits = engine.logits(batch)
    return None if logits is None else logits.numpy()


@pytest.mark.parametrize("changes", [INTERLEAVED, {"parallel__pipeline": 2, "parallel__pipeline_layout": "E|t*4L"}])
def test_logits_are_those_of_a_single_process(changes: dict[str, Any], corpus: Path, tmp_path: Path) -> None:
    (expected,) = run_ranks(logits_of_random_weights, 1, write(tiny_config(tmp_path / "one", corpus)))
    first, last = run_ranks(logits_of_random_weights, 2, write(tiny_config(tmp_path / "two", corpus, **changes)))
    assert first is None and expected.shape == last.shape == (1, 96, ROWS)
    np.testing.assert_allclose(last, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "world"), [(INTERLEAVED, 2), (OVERLAPPED, 2), (INTERLEAVED | OVERLAPPED, 4)], ids=["VPP", "DP", "both"]
)
def test_validation_between_steps_sees_the_whole_last_step(
    changes: dict[str, Any], world: int, corpus: Path, tmp_path: Path
) -> None:
    """Before the first step too: the same seed gives the same weights. Validating changes nothing about training."""
    settings = {"train__steps": 6, "train__validate_every": 2, "train__validation_packs": 8}
    whole = run_config(tiny_config(tmp_path / "one", corpus, **settings))
    lines = run_config(tiny_config(tmp_path / "some", corpus, **settings, **changes), world)

    def validation(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (tmp_path / name / "validation.jsonl").read_text().splitlines()]

    measured = validation("some")
    assert [line["step"] for line in measured] == [0, 2, 4, 6]
    for ours, theirs in zip(measured, validation("one"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    for ours, theirs in zip(lines, whole, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)


def test_saved_parameters_are_those_of_the_last_step_though_their_gathering_waits(corpus: Path, tmp_path: Path) -> None:
    """The optimiser's own copy would mend them on a resume; whoever reads parameters alone would be a step behind."""
    readers = []
    for name, changes in [("plain", {"parallel__distributed_optimizer": True}), ("overlapped", OVERLAPPED)]:
        run_config(tiny_config(tmp_path / name, corpus, train__steps=3, optimizer__lr=1e-2, **changes), 2)
        readers.append(NativeReader(tmp_path / name / "checkpoints/step-00000003/tensors"))
    plain, overlapped = readers
    names = [name for name in plain.tensors if name.startswith(MODEL_PREFIX)]
    assert len(names) > 5
    for name in names:
        torch.testing.assert_close(overlapped.read(name), plain.read(name), rtol=1e-4, atol=1e-5)
