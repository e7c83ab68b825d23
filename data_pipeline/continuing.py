"""Prompts continued by a causal language model of transformers, many of them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from data_pipeline.drawing import Drawing, Grammar, Sampling
from data_pipeline.exported_model import padded_prompts


class Opening(NamedTuple):
    """A prompt's ids, how many turns of the grammar may follow at most, and the seed of what is drawn."""

    ids: Sequence[int]
    most: int
    seed: int


@dataclass(frozen=True)
class Said:
    """ids: what a prompt is continued with, and the end, if that was said. log_probs: of each, over the whole
    vocabulary, by the model that said it; empty where nobody asked for them."""

    ids: tuple[int, ...]
    log_probs: tuple[float, ...] = ()


def continued(
    model: Any, openings: Sequence[Opening], grammar: Grammar, sampling: Sampling, *, tell: bool = False
) -> list[Said]:
    """What `model` says to each. tell: with log-probabilities. What a prompt is continued with depends on itself and
    its seed, on what is beside it only where a draw falls between two tokens to the last bits of their chances."""
    import torch
    from transformers import LogitsProcessorList

    if not openings:
        return []
    batch = padded_prompts([list(one.ids) for one in openings], grammar.end, model.device)
    width, turn = batch["input_ids"].shape[1], len(grammar.tables)
    most, seeds = [one.most for one in openings], [one.seed for one in openings]
    drawing = Drawing(grammar, sampling, prompt=width, most=most, seeds=seeds, tell=tell)
    with torch.inference_mode():
        out = model.generate(
            **batch,
            logits_processor=LogitsProcessorList([drawing]),
            do_sample=False,  # the processor leaves one token to choose
            num_beams=1,
            max_new_tokens=max(most) * turn,
            eos_token_id=grammar.end,
            pad_token_id=grammar.end,
        )
    rows = out[:, width:].cpu().tolist()
    told = torch.stack(drawing.log_probs, 1).cpu().tolist() if tell else [[]] * len(rows)
    found = []
    for row, numbers, one in zip(rows, told, openings, strict=True):
        limit = one.most * turn
        count = row.index(grammar.end) + 1 if grammar.end in row[:limit] else min(limit, len(row))
        found.append(Said(tuple(row[:count]), tuple(numbers[:count])))
    return found
