"""Small models that have learnt a few samples by heart, as exports of runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from data_pipeline.batch import Sample
from data_pipeline.vocabulary import Vocabulary

MOST_STEPS = 400
KNOWN = 0.01  # nats a token, below which all is known by heart


def learn_by_heart(samples: Sequence[Sample], vocabulary: Vocabulary, export: Path) -> None:
    """Train a random Llama of two layers, by transformers, on what the losses of `samples` cover, and write it with its
    vocabulary to `export`."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary.padded_size,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )
    rows = [torch.from_numpy(sample.tokens) for sample in samples]
    length = max(map(len, rows))
    ids = torch.stack([torch.nn.functional.pad(row, (0, length - len(row))) for row in rows])
    labels = torch.full_like(ids, -100)
    for row, sample in zip(labels, samples, strict=True):
        covered = sample.loss_weight > 0
        row[: len(sample)][torch.from_numpy(covered)] = torch.from_numpy(sample.tokens[covered])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(MOST_STEPS):
        loss = model(input_ids=ids, labels=labels).loss
        if loss.item() < KNOWN:
            break
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < KNOWN
    model.save_pretrained(export)
    vocabulary.save(export)
