"""Continuations of prompts by an exported model, greedy and among text alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from data_pipeline.exported_model import padded_prompts
from data_pipeline.vocabulary import TEXT, Vocabulary

if TYPE_CHECKING:
    import torch


def continue_as_text(
    model: Any, vocabulary: Vocabulary, prompts: list[list[int]], most: int, ends: Sequence[int]
) -> list[list[int]]:
    """Ids that follow each prompt, at most `most`, without the one of `ends` that ended it."""
    import torch
    from transformers import LogitsProcessorList

    batch = padded_prompts(prompts, ends[0], model.device)
    with torch.inference_mode():
        out = model.generate(
            **batch,
            logits_processor=LogitsProcessorList([_TextOnly(vocabulary, ends)]),
            do_sample=False,
            num_beams=1,
            max_new_tokens=most,
            eos_token_id=list(ends),
            pad_token_id=ends[0],
        )
    rows = out[:, batch["input_ids"].shape[1] :].tolist()
    return [row[: next((place for place, token in enumerate(row) if token in ends), len(row))] for row in rows]


class _TextOnly:
    """A logits processor that leaves ids of text and those that end a text."""

    def __init__(self, vocabulary: Vocabulary, ends: Sequence[int]) -> None:
        self._text = vocabulary.ranges[TEXT].stop
        self._ends = list(ends)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [rows, vocabulary]."""
        import torch

        allowed = torch.zeros(scores.shape[1], dtype=torch.bool, device=scores.device)
        allowed[: self._text] = True
        allowed[self._ends] = True
        return scores.masked_fill(~allowed, -torch.inf)
