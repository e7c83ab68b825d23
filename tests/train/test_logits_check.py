"""A conversion's logits against transformers, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints.card import LogitsAgreement
from checkpoints.convert import import_huggingface
from tests.checkpoints.models import ROWS, backbone, write_model
from tests.ranks import run_ranks
from train.logits_check import LENGTHS, Comparison, compare


def agreements(pairs: list[tuple[str, str]]) -> list[LogitsAgreement]:
    return [compare(Path(native), Path(published)) for native, published in pairs]


def test_logits_are_transformers_and_a_changed_weight_shows(tmp_path: Path) -> None:
    pairs: list[tuple[str, str]] = []
    for name, changes, dtype in (("tied", {}, torch.float32), ("bf16", {"tied_embeddings": False}, torch.bfloat16)):
        of = backbone(**changes)
        source = write_model(tmp_path / name, of, dtype)
        native = import_huggingface(source, tmp_path / f"{name}-native", of, text_size=ROWS - 6, padded_size=128)
        pairs.append((str(native), str(source)))
    spoilt = tmp_path / "tied"
    held = load_file(spoilt / "model.safetensors")
    other = write_model(tmp_path / "other", backbone())
    held["model.layers.1.mlp.down_proj.weight"] *= 3
    save_file(held, other / "model.safetensors", metadata={"format": "pt"})
    pairs.append((pairs[0][0], str(other)))

    tied, untied, wrong = run_ranks(agreements, 1, pairs)[0]
    for agreement in (tied, untied):
        assert agreement.agree and agreement.max_abs < 1e-5 and agreement.same_argmax == 1.0, agreement
        assert agreement.cosine > 1 - 1e-9 and agreement.tokens == sum(LENGTHS)
        assert agreement.reference.startswith("LlamaForCausalLM of transformers")
    assert not wrong.agree and wrong.cosine < tied.cosine


def test_what_cannot_be_compared_is_one_line(tmp_path: Path) -> None:
    """The command as conversions start it: numbers on its last line, or a line that says why there are none."""
    source = write_model(tmp_path / "source", backbone())
    native = import_huggingface(source, tmp_path / "native", backbone(), text_size=ROWS, padded_size=ROWS)
    assert LogitsAgreement(**json.loads(run(native, source).stdout.splitlines()[-1])).agree
    config: dict[str, Any] = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(
        json.dumps(config | {"model_type": "of nobody", "auto_map": {"AutoModel": "a.b"}})
    )
    ended = run(native, source)
    assert ended.returncode == 2 and "transformers does not load it" in ended.stderr


def run(*arguments: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "train.logits_check", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


def test_a_comparison_counts_what_differs() -> None:
    comparison = Comparison()
    theirs = torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]])
    comparison.add(torch.tensor([[1.0, 2.5, 0.0, 99.0], [0.0, 3.0, 0.0, 99.0]]), theirs)
    assert (comparison.tokens, comparison.max_abs, comparison.same_argmax) == (2, 3.0, 0.5)
    assert comparison.cosine == pytest.approx(0.0)
    assert comparison.worst == "token 1 of 2 in sample 0, their median is 5.0e-01"
    comparison.add(torch.full((1, 3), float("nan")), theirs[:1])
    assert comparison.max_abs == float("inf") and comparison.cosine == -1.0
