"""Drawing the next token of a prompt's continuation: only what can stand at a place is drawn there.

Of speech that is a code of the table whose turn it is in a group or, between groups, the token that ends the speech: a
model whose groups slip by one token says noise from there on, so the phase is enforced rather than checked. Of text it
is text, or its end. What a row draws follows from its own seed, whatever engine runs the model, and whatever is beside
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from data_pipeline.layouts.groups import tables_of_group
from data_pipeline.vocabulary import TEXT, Vocabulary

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    temperature: 0 takes the likeliest. top_p: of the likeliest ids that together have this probability. window, share:
    the last token cannot come again at once where more than `share` of the last `window` tokens are it (10 and 0.1 in
    Step-Audio's tts.py); a share of 1 never blocks.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    window: int = 10
    share: float = 1.0


@dataclass(frozen=True)
class Grammar:
    """What can stand where. tables: the ids of each place of a turn, which comes again and again. end: the id that ends
    all, between two turns, after at least `least` of them."""

    tables: tuple[range, ...]
    end: int
    least: int


def grammar_of_codes(vocabulary: Vocabulary, end: int) -> Grammar:
    """A turn is a group, of which there is at least one."""
    return Grammar(tuple(tables_of_group(vocabulary)), end, least=1)


def grammar_of_text(vocabulary: Vocabulary, end: int) -> Grammar:
    """A turn is a token of text. Some tokenizers have the end among these."""
    return Grammar((vocabulary.ranges[TEXT],), end, least=0)


def generator_of(seed: int, done: int = 0) -> np.random.Generator:
    """A row's generator, of which `done` tokens were drawn already."""
    rng = np.random.default_rng(seed)
    rng.bit_generator.advance(done)  # type: ignore[attr-defined]  # one step of PCG64 a number
    return rng


def draw(
    scores: torch.Tensor,
    grammar: Grammar,
    sampling: Sampling,
    *,
    place: int,
    turns: Sequence[int],
    recent: torch.Tensor,
    rngs: Sequence[np.random.Generator],
) -> torch.Tensor:
    """The next token of rows that are all at one place of a turn: int64 [rows].

    scores: [rows, vocabulary]. turns: whole ones of each row. recent: int64 [rows, n], the last tokens of each, prompt
    included, at least `sampling.window` where there are so many. One number is taken from each of `rngs`.
    """
    import torch

    ids = grammar.tables[place]
    held = scores[:, ids.start : ids.stop]
    held = held.masked_fill(_repeated(recent, ids, sampling), -torch.inf)
    may_end = place == 0 and grammar.end not in ids and any(turn >= grammar.least for turn in turns)
    if may_end:
        ending = scores[:, grammar.end : grammar.end + 1]
        early = torch.tensor([[turn < grammar.least] for turn in turns], device=held.device)
        held = torch.cat([held, ending.masked_fill(early, -torch.inf)], dim=1)
    column = _columns(held.double(), sampling, rngs)
    return torch.where(column == len(ids), grammar.end, column + ids.start)


def _repeated(recent: torch.Tensor, ids: range, sampling: Sampling) -> torch.Tensor:
    """bool [rows, table]: the last token, where it is too large a share of the last ones."""
    import torch

    blocked = torch.zeros(len(recent), len(ids), dtype=torch.bool, device=recent.device)
    if sampling.share >= 1 or len(ids) == 1:
        return blocked
    recent = recent[:, -sampling.window :]
    last = recent[:, -1:]
    often = (recent == last).sum(1, keepdim=True) > sampling.share * sampling.window
    column = last - ids.start
    here = often & (column >= 0) & (column < len(ids))
    return blocked.scatter_(1, column.clamp(0, len(ids) - 1), here)


def _columns(logits: torch.Tensor, sampling: Sampling, rngs: Sequence[np.random.Generator]) -> torch.Tensor:
    """One column for each row of float64 [rows, columns], by inverting the distribution at the next uniform number of
    the row's own generator."""
    import torch

    uniform = torch.tensor([rng.random() for rng in rngs], dtype=torch.float64, device=logits.device)
    if sampling.temperature == 0:
        return logits.argmax(1)
    chances = (logits / sampling.temperature).softmax(1)
    if sampling.top_p < 1:
        falling, order = chances.sort(dim=1, descending=True, stable=True)
        kept = falling.cumsum(1) - falling < sampling.top_p
        chances = torch.zeros_like(chances).scatter(1, order, torch.where(kept, falling, 0.0))
    reached = chances.cumsum(1)
    column = torch.searchsorted(reached, (uniform * reached[:, -1])[:, None], right=True)[:, 0]
    last = chances.shape[1] - 1 - chances.flip(1).ne(0).double().argmax(1)  # that has a chance at all
    return torch.minimum(column, last)


class Drawing:
    """A logits processor of transformers that draws the next token of every row itself, and leaves no other; only the
    end after `most` turns of a row.

    prompt: length of what is continued; rows are all at the same place of a turn, for prompts are padded on the left.
    seeds: of the rows. tell: keep the log-probabilities of what was drawn, over the whole vocabulary.
    """

    def __init__(
        self,
        grammar: Grammar,
        sampling: Sampling,
        *,
        prompt: int,
        most: Sequence[int],
        seeds: Sequence[int],
        tell: bool = False,
    ) -> None:
        self._grammar = grammar
        self._sampling = sampling
        self._prompt = prompt
        self._most = most
        self._rngs = [generator_of(seed) for seed in seeds]
        self._tell = tell
        self.log_probs: list[torch.Tensor] = []  # float64 [rows], of each token drawn so far

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [rows, vocabulary] that leave the drawn token."""
        import torch

        turn, place = divmod(input_ids.shape[1] - self._prompt, len(self._grammar.tables))
        tokens = draw(
            scores,
            self._grammar,
            self._sampling,
            place=place,
            turns=[turn] * len(scores),
            recent=input_ids,
            rngs=self._rngs,
        )
        if place == 0 and turn >= min(self._most):
            over = torch.tensor([turn >= most for most in self._most], device=tokens.device)
            tokens = torch.where(over, self._grammar.end, tokens)
        if self._tell:
            told = scores.double().log_softmax(1)
            self.log_probs.append(told.gather(1, tokens[:, None])[:, 0])
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)
