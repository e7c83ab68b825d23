"""Drawing in vLLM's sampler as everywhere else (`data_pipeline.drawing`). Loaded by vLLM, in its own processes.

vLLM's own sampler then finds one token left. Its seeds, repetition rules and grammars know nothing of codebooks' turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from data_pipeline.drawing import Grammar, Sampling, draw, generator_of
from train.inference.owner import end_with_owner

PLACE = f"{__name__}:Drawing"
"""Where vLLM finds it."""
_ARGUMENTS = "megaphone"  # of SamplingParams.extra_args


def arguments(grammar: Grammar, sampling: Sampling, seed: int) -> dict[str, Any]:
    """`SamplingParams.extra_args` of one prompt, as plain values that can be sent."""
    tables = [(table.start, table.stop) for table in grammar.tables]
    told = {"tables": tables, "end": grammar.end, "least": grammar.least, "sampling": asdict(sampling), "seed": seed}
    return {_ARGUMENTS: told}


@dataclass
class _Row:
    """A prompt that is being continued. said: vLLM's own list, to which it adds what was drawn, unless it read only a
    part of the prompt. at: of how many draws `rng` is past."""

    grammar: Grammar
    sampling: Sampling
    prompt: Sequence[int]
    said: Sequence[int]
    seed: int
    rng: np.random.Generator
    at: int

    @property
    def place(self) -> int:
        return len(self.said) % len(self.grammar.tables)

    @property
    def turn(self) -> int:
        return len(self.said) // len(self.grammar.tables)

    def recent(self) -> list[int]:
        """The last tokens, those of a window if there are so many."""
        missing = self.sampling.window - len(self.said)
        return [*(self.prompt[-missing:] if missing > 0 else ()), *self.said[-self.sampling.window :]]

    def next_rng(self) -> np.random.Generator:
        """The generator for the next token, of which one number will be taken."""
        if self.at != len(self.said):
            self.rng, self.at = generator_of(self.seed, len(self.said)), len(self.said)
        self.at += 1
        return self.rng


class Drawing(LogitsProcessor):
    """Leaves every row one token, drawn by the row's own generator."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, _Row] = {}
        end_with_owner()

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self._rows, batch_update, _row)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [rows, vocabulary]. Rows at one place of the same grammar are drawn together."""
        for numbers, rows in _alike(self._rows):
            index = torch.tensor(numbers, device=logits.device)
            first = rows[0]
            recent = [row.recent() for row in rows]
            shortest = min(map(len, recent))
            tokens = draw(
                logits[index],
                first.grammar,
                first.sampling,
                place=first.place,
                turns=[row.turn for row in rows],
                recent=torch.tensor([ids[len(ids) - shortest :] for ids in recent], device=logits.device),
                rngs=[row.next_rng() for row in rows],
            )
            logits[index] = torch.full_like(logits[index], -torch.inf).scatter_(1, tokens[:, None], 0.0)
        return logits


def _row(params: SamplingParams, prompt: list[int] | None, said: list[int]) -> _Row | None:
    """A row of vLLM's batch; one that was put off and comes again has said something already."""
    told = (params.extra_args or {}).get(_ARGUMENTS)
    if told is None:
        return None
    grammar = Grammar(tuple(range(*table) for table in told["tables"]), told["end"], told["least"])
    rng = generator_of(told["seed"], len(said))
    return _Row(grammar, Sampling(**told["sampling"]), prompt or [], said, told["seed"], rng, len(said))


def _alike(rows: dict[int, _Row]) -> Iterable[tuple[list[int], list[_Row]]]:
    def kind(number: int) -> Any:
        row = rows[number]
        return row.place, row.grammar.end, row.grammar.least, row.grammar.tables[row.place].start, str(row.sampling)

    for _, numbers in groupby(sorted(rows, key=kind), key=kind):
        held = list(numbers)
        yield held, [rows[number] for number in held]
