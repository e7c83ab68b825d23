"""Text by an exported model: prompts of ids continued to text, among text alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data_pipeline.exported_model import padded_prompts
from data_pipeline.vocabulary import TEXT, Vocabulary

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TextSampling:
    """How text is drawn. temperature: 0 takes the likeliest. top_p: of the likeliest ids that together have this
    probability."""

    temperature: float = 0.0
    top_p: float = 1.0


GREEDY = TextSampling()
STEP_AUDIO_CHAT = TextSampling(temperature=0.7, top_p=0.9)  # stepaudio.py of stepfun-ai/Step-Audio


def continue_text(
    model: Any,
    vocabulary: Vocabulary,
    prompts: Sequence[Sequence[int]],
    *,
    end: int,
    most: int,
    sampling: TextSampling = GREEDY,
    seed: int = 0,
) -> list[list[int]]:
    """Ids of text that `model`, a causal language model of `transformers`, continues each prompt with, all together,
    without the `end` that ends it: at most `most`. What is drawn follows from the seed and from all prompts."""
    import torch
    from transformers import LogitsProcessorList

    batch = padded_prompts([list(prompt) for prompt in prompts], end, model.device)
    drawn: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    with torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(seed)
        out = model.generate(
            **batch,
            **drawn,
            logits_processor=LogitsProcessorList([_TextOnly(vocabulary, end)]),
            num_beams=1,
            max_new_tokens=most,
            eos_token_id=end,
            pad_token_id=end,
        )
    rows = out[:, batch["input_ids"].shape[1] :].tolist()
    return [row[: row.index(end)] if end in row else row for row in rows]


class _TextOnly:
    """A logits processor that leaves ids of text and the end."""

    def __init__(self, vocabulary: Vocabulary, end: int) -> None:
        self._text = vocabulary.ranges[TEXT].stop
        self._end = end

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [rows, vocabulary]."""
        import torch

        allowed = torch.zeros(scores.shape[1], dtype=torch.bool, device=scores.device)
        allowed[: self._text] = True
        allowed[self._end] = True
        return scores.masked_fill(~allowed, -torch.inf)
