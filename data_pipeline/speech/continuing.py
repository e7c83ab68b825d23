"""Continuing prompts with audio codes: only what can stand at a place is drawn there.

That is a code of the table whose turn it is in a group, or, between groups, the token that ends the speech. A model
whose groups slip by one token says noise from there on, so the phase is enforced rather than checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline.exported_model import padded_prompts
from data_pipeline.layouts.groups import group_length
from data_pipeline.vocabulary import Vocabulary

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Sampling:
    """How codes are drawn.

    temperature: 0 takes the likeliest. top_p: of the likeliest codes that together have this probability. window,
    share: the last token cannot come again at once where more than `share` of the last `window` tokens are it (10 and
    0.1 in Step-Audio's tts.py); a share of 1 never blocks.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    window: int = 10
    share: float = 1.0


@dataclass(frozen=True)
class Continuation:
    """ids: int64 [whole groups x group length], without what ended them. ended: whether the model ended them itself."""

    ids: np.ndarray
    ended: bool


def continue_codes(
    model: Any,
    vocabulary: Vocabulary,
    prompts: Sequence[Sequence[int]],
    *,
    most: Sequence[int],
    seeds: Sequence[int],
    end: int,
    sampling: Sampling,
) -> list[Continuation]:
    """Each prompt continued by `model`, a causal language model of `transformers`, all of them together.

    Prompts end where a group begins. most: groups of each; one that the model has not ended after so many is cut there.
    end: the id that ends speech. A prompt's codes depend on itself and its seed, on what is beside it only where two
    codes are as likely as each other to the last bits.
    """
    import torch
    from transformers import LogitsProcessorList

    batch = padded_prompts([list(prompt) for prompt in prompts], end, model.device)
    width, length = batch["input_ids"].shape[1], group_length(vocabulary)
    drawing = CodesOnly(vocabulary, width, most, seeds, end, sampling)
    with torch.inference_mode():
        out = model.generate(
            **batch,
            logits_processor=LogitsProcessorList([drawing]),
            do_sample=False,  # the processor leaves one token to choose
            num_beams=1,
            max_new_tokens=max(most) * length + 1,
            eos_token_id=end,
            pad_token_id=end,
        )
    said = out[:, width:].cpu().numpy()
    found = []
    for row, limit in zip(said, most, strict=True):
        ends = np.flatnonzero(row == end)
        stop = int(ends[0]) if len(ends) else len(row)
        found.append(Continuation(row[:stop], ended=stop < limit * length))
    return found


class CodesOnly:
    """A logits processor that draws the next token of every row itself and leaves no other: a code of the table whose
    turn it is or, after at least one group, `end`; only that after `most` groups of a row.

    Row r's draws come from `seeds[r]` alone. `prompt` is the length of what is continued. Rows are all at the same
    place of a group, for prompts are padded on the left.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        prompt: int,
        most: Sequence[int],
        seeds: Sequence[int],
        end: int,
        sampling: Sampling,
    ) -> None:
        self._prompt = prompt
        self._most = most
        self._turns = tables_in_turn(vocabulary)
        self._end = end
        self._sampling = sampling
        self._rngs = [np.random.default_rng(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [rows, vocabulary] that leave the drawn token."""
        import torch

        group, place = divmod(input_ids.shape[1] - self._prompt, len(self._turns))
        ids = self._turns[place]
        held = scores[:, ids.start : ids.stop]
        held = held.masked_fill(self._repeated(input_ids, ids), -torch.inf)
        over = torch.zeros(len(held), dtype=torch.bool, device=held.device)
        if place == 0 and group:
            held = torch.cat([held, scores[:, self._end : self._end + 1]], dim=1)
            over = torch.tensor([group >= most for most in self._most], device=held.device)
        drawn = self._draw(held.double())
        tokens = torch.where(over | (drawn == len(ids)), self._end, drawn + ids.start)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)

    def _repeated(self, input_ids: torch.Tensor, ids: range) -> torch.Tensor:
        """bool [rows, table]: the last token, where it is too large a share of the last ones."""
        import torch

        blocked = torch.zeros(len(input_ids), len(ids), dtype=torch.bool, device=input_ids.device)
        if self._sampling.share >= 1 or len(ids) == 1:
            return blocked
        recent, last = input_ids[:, -self._sampling.window :], input_ids[:, -1:]
        often = (recent == last).sum(1, keepdim=True) > self._sampling.share * self._sampling.window
        column = last - ids.start
        here = often & (column >= 0) & (column < len(ids))
        return blocked.scatter_(1, column.clamp(0, len(ids) - 1), here)

    def _draw(self, logits: torch.Tensor) -> torch.Tensor:
        """One column for each row, by inverting the distribution at the row's next uniform number."""
        import torch

        if self._sampling.temperature == 0:
            return logits.argmax(1)
        chances = (logits / self._sampling.temperature).softmax(1)
        if self._sampling.top_p < 1:
            falling, order = chances.sort(dim=1, descending=True, stable=True)
            kept = falling.cumsum(1) - falling < self._sampling.top_p
            chances = torch.zeros_like(chances).scatter(1, order, torch.where(kept, falling, 0.0))
        return drawn(chances, self._rngs)


def drawn(chances: torch.Tensor, rngs: Sequence[np.random.Generator]) -> torch.Tensor:
    """A column for each row of `chances`, float64 [rows, columns], by inverting the distribution at the next uniform
    number of the row's own generator: int64 [rows]."""
    import torch

    uniform = torch.tensor([rng.random() for rng in rngs], dtype=torch.float64, device=chances.device)
    reached = chances.cumsum(1)
    place = torch.searchsorted(reached, (uniform * reached[:, -1])[:, None], right=True)
    return place.clamp(max=chances.shape[1] - 1)[:, 0]


def tables_in_turn(vocabulary: Vocabulary) -> list[range]:
    """The ids that can stand at each place of a group: its codebooks in order, of each frame the tables in order."""
    return [
        range(start := vocabulary.ranges[book.name].start + row * book.size, start + book.size)
        for book in vocabulary.codebooks
        for _ in range(book.per_group)
        for row in range(book.rows)
    ]
