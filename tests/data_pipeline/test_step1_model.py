"""Step-1 in transformers against its formulas in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from configs.schema import BackboneConfig, Positions
from data_pipeline import step1_model
from data_pipeline.exported_model import padded_prompts, read_exported
from tests.checkpoints.architectures import ROWS, step1

SHAPE = BackboneConfig(
    name="step1", layers=2, hidden=48, heads=6, kv_heads=2, ffn=64, max_positions=128, positions=Positions.sqrt_alibi
)


@pytest.mark.parametrize("at_once", [512, 7])
def test_logits_are_those_of_the_formulas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    wanted = step1(tmp_path / "hf", SHAPE)
    monkeypatch.setattr(step1_model, "_QUERIES", at_once)
    model = read_exported(tmp_path / "hf", "it", ROWS, device="cpu")
    ids = torch.randint(ROWS, (40,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (model(input_ids=ids[None]).logits[0] - wanted(ids)).abs().max() < 1e-4


def test_it_generates_beside_others_with_a_cache(tmp_path: Path) -> None:
    """Prompts padded on the left, keys and values kept: greedy tokens are those of whole forward passes, one by one."""
    wanted = step1(tmp_path / "hf", SHAPE)
    model = read_exported(tmp_path / "hf", "it", ROWS, device="cpu")
    prompts = [[1, 2, 3], list(range(5, 20)), [9]]
    said = model.generate(**padded_prompts(prompts, 0, "cpu"), max_new_tokens=12, do_sample=False, eos_token_id=None)
    for prompt, row in zip(prompts, said.tolist(), strict=True):
        ids = list(prompt)
        for _ in range(12):
            ids.append(int(wanted(torch.tensor(ids))[-1].argmax()))
        assert row[-12:] == ids[-12:]
