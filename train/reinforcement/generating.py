"""Answers of the policy, drawn from an export of its weights by an engine that is kept from round to round.

What is asked is one small protocol, so that what runs the model (transformers here) can be another thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from data_pipeline.exported_model import padded_prompts, read_exported
from data_pipeline.speech.continuing import drawn
from data_pipeline.vocabulary import TEXT, Vocabulary

if TYPE_CHECKING:
    import torch


class Asked(NamedTuple):
    """A prompt's ids, the id that ends its answer, one for all that are asked together, and the seed of what is
    drawn."""

    ids: Sequence[int]
    end: int
    seed: int


@dataclass(frozen=True)
class Said:
    """An answer. ids: of text, then the one that ended it, if that was said. log_probs: of each, over the whole
    vocabulary, by the model that said it."""

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]


class Generator(Protocol):
    def take(self, export: Path) -> None:
        """Answer with the weights of this export from now on."""

    def answer(self, asked: Sequence[Asked], most: int) -> list[Said]:
        """Answers of at most `most` tokens, the same for the same prompt, seed and weights. Tokens are drawn as likely
        as the model finds them, among text and the end: what is learnt is then the policy that spoke."""


class TransformersGenerator:
    """One model of transformers in this process; new weights are copied into it.

    device: cpu, cuda or cuda:<n>. The weights have to fit it beside those that are trained.
    """

    def __init__(self, vocabulary: Vocabulary, *, device: str, bf16: bool) -> None:
        self._vocabulary = vocabulary
        self._device = device
        self._bf16 = bf16
        self._model: Any = None

    def take(self, export: Path) -> None:
        if self._model is None:
            self._model = read_exported(
                export, str(export), self._vocabulary.size, device=self._device, bf16=self._bf16
            )
            return
        from safetensors.torch import load_file

        own, filled = self._model.state_dict(), set()
        for file in sorted(export.glob("*.safetensors")):
            held = load_file(file)
            filled |= {own[name].data_ptr() for name in held}
            self._model.load_state_dict(held, strict=False)
        lacking = [name for name, tensor in own.items() if tensor.data_ptr() not in filled]  # a tied head is no lack
        if lacking:
            raise RuntimeError(f"{export} lacks {lacking[0]}")

    def answer(self, asked: Sequence[Asked], most: int) -> list[Said]:
        import torch
        from transformers import LogitsProcessorList

        if not asked:
            return []
        (end,) = {one.end for one in asked}
        batch = padded_prompts([list(one.ids) for one in asked], end, self._model.device)
        drawing = _Drawing(self._allowed(end), [one.seed for one in asked])
        with torch.inference_mode():
            out = self._model.generate(
                **batch,
                logits_processor=LogitsProcessorList([drawing]),
                do_sample=False,  # the processor leaves one token to choose
                num_beams=1,
                max_new_tokens=most,
                eos_token_id=end,
                pad_token_id=end,
            )
        rows = out[:, batch["input_ids"].shape[1] :].cpu().tolist()
        log_probs = torch.stack(drawing.log_probs, 1).cpu().tolist()
        found = []
        for row, told in zip(rows, log_probs, strict=True):
            count = row.index(end) + 1 if end in row else len(row)
            found.append(Said(tuple(row[:count]), tuple(told[:count])))
        return found

    def _allowed(self, end: int) -> torch.Tensor:
        """Ids that can be drawn: int64, on the model's device."""
        import torch

        text = self._vocabulary.ranges[TEXT]
        ids = [*text] if end in text else [*text, end]  # some tokenizers of text have the end as well
        return torch.tensor(ids, device=self._model.device)


class _Drawing:
    """A logits processor that draws the next token of every row itself, one of the `allowed` ids, and leaves no other.
    Row r's draws come from `seeds[r]` alone."""

    def __init__(self, allowed: torch.Tensor, seeds: Sequence[int]) -> None:
        self._allowed = allowed
        self._rngs = [np.random.default_rng(seed) for seed in seeds]
        self.log_probs: list[torch.Tensor] = []  # float64 [rows], of each token drawn so far

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [rows, vocabulary] that leave the drawn token."""
        import torch

        told = scores.double().log_softmax(1)
        tokens = self._allowed[drawn(told[:, self._allowed].softmax(1), self._rngs)][:, None]
        self.log_probs.append(told.gather(1, tokens)[:, 0])
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens, 0.0)
