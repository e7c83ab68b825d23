"""An outside reference: the same weights, data and AdamW in plain PyTorch around transformers' own models.

Of ours it takes the exported weights and the packs of the real loader, sample by sample; it shares no line of the
model, the loss, the schedule, the optimiser or the clipping.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from configs.schema import Config
from data_pipeline.batch import Pack
from data_pipeline.corpus import Corpus
from data_pipeline.loader import make_loader
from launch.commands import export_run
from tests.data_pipeline.synthetic import make_corpus
from tests.train.runs import run_config, tiny_config

STEPS, TOLERANCE = 20, 1e-4
OPTIONS: dict[str, Any] = {
    "optimizer__clip_grad": 0.8,  # below the norms of most steps, above those of some
    "optimizer__weight_decay": 0.3,
    "optimizer__floor": 0.2,
}

GRANITE: dict[str, Any] = {
    "backbone__architecture": "granite",
    "backbone__embedding_multiplier": 3.0,
    "backbone__residual_multiplier": 0.6,
    "backbone__attention_scale": 0.3,
    "backbone__logits_divisor": 0.5,
}
GLM: dict[str, Any] = {
    "backbone__architecture": "glm",
    "backbone__qkv_bias": True,
    "backbone__rope_share": 0.5,
    "backbone__rope_interleaved": True,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "corpus")


@pytest.mark.parametrize(
    ("tied", "processes", "changes"),
    [
        (True, 1, {}),
        (False, 2, {"parallel__tensor": 2, "loss__chunk": 32, "loss__z": 1e-3, "loss__smoothing": 0.1}),
        (False, 1, {"loss__modalities": {"audio": 0.5, "semantic": 2.0}}),
        (True, 2, {"parallel__tensor": 2, **GRANITE}),
        (False, 2, {"parallel__pipeline": 2, **GLM}),
    ],
    ids=["tied", "TP2, chunked, smoothed, z", "modality weights", "Granite's multipliers, TP2", "GLM's rotations, PP2"],
)
def test_twenty_steps_are_those_of_transformers_and_torch(
    tied: bool, processes: int, changes: dict[str, Any], corpus: Path, tmp_path: Path
) -> None:
    changes = {**OPTIONS, "backbone__tied_embeddings": tied, **changes}
    model = {key: value for key, value in changes.items() if key.startswith("backbone")}
    model["backbone__tied_embeddings"] = tied
    start = tiny_config(tmp_path / "start", corpus, **model, train__steps=2, optimizer__lr=1e-7)
    run_config(start)
    weights = str(tmp_path / "start/checkpoints/step-00000002")
    config = tiny_config(tmp_path / "ours", corpus, stage__weights=weights, train__steps=STEPS, **changes)
    curve = run_config(config, processes)
    clipped = 0
    for ours, (loss, norm) in zip(
        curve, reference(config, AutoModelForCausalLM.from_pretrained(export_run(start))), strict=True
    ):
        assert ours["loss"] == pytest.approx(loss, rel=TOLERANCE)
        assert ours["grad_norm"] == pytest.approx(norm, rel=TOLERANCE)
        clipped += norm > config.optimizer.clip_grad
    assert clipped > 0
    assert curve[-1]["loss"] < 0.95 * curve[0]["loss"]


def reference(config: Config, model: torch.nn.Module) -> Iterator[tuple[float, float]]:
    """The plain loss and the gradient norm, before clipping, of each step."""
    optimizer = config.optimizer
    decayed = {True: optimizer.weight_decay, False: 0.0}
    groups: dict[tuple[float, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault((2.0 if "embed_tokens" in name else 1.0, parameter.dim() > 1), []).append(parameter)
    adam = torch.optim.AdamW(
        [{"params": found, "factor": factor, "weight_decay": decayed[d]} for (factor, d), found in groups.items()],
        betas=(optimizer.beta1, optimizer.beta2),
        eps=optimizer.eps,
    )
    opened = Corpus.open(Path(config.corpus.folder))
    loader = make_loader(config, opened, split="train", rank=0, world=1)
    for step in range(1, STEPS + 1):
        warm = optimizer.warmup_steps
        fall = (1 - math.cos(math.pi * (step - warm) / (STEPS - warm))) / 2
        rate = optimizer.lr * (step / warm if step <= warm else 1 - (1 - optimizer.floor) * fall)
        packs = loader.next_step()
        plain, total, plain_count, count = 0.0, torch.zeros(()), 0.0, 0.0
        for pack in packs:
            for ids, labels, given, modality in samples(pack):
                logits = model(input_ids=ids[None]).logits[0]
                weight = given * torch.tensor([weight_of(opened.vocabulary.modalities[m], config) for m in modality])
                losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=config.loss.smoothing)
                losses = losses + config.loss.z * logits.logsumexp(1).square()
                total = total + (losses * weight).sum()
                count += float(weight.sum())
                plain += float((F.cross_entropy(logits, labels, reduction="none") * given).sum())
                plain_count += float(given.sum())
        (total / count).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), optimizer.clip_grad)
        for group in adam.param_groups:
            group["lr"] = rate * group["factor"]
        adam.step()
        adam.zero_grad()
        yield plain / plain_count, float(norm)
    loader.close()


def weight_of(modality: str, config: Config) -> float:
    given = config.loss.modalities
    return given.get(modality, given.get("audio", 1.0) if modality != "text" else 1.0)


def samples(pack: Pack) -> Iterator[tuple[torch.Tensor, ...]]:
    """Ids, labels, loss weights and label modalities of each sample; padding is left out."""
    start = 0
    for length in pack.lengths[: len(pack.keys)]:
        part = slice(start, start + length)
        arrays = (pack.tokens, pack.labels, pack.loss_weight, pack.label_modality)
        yield tuple(torch.from_numpy(array[part]) for array in arrays)
        start += length
