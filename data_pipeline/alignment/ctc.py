"""CTC forced alignment: the likeliest way in which given tokens are spoken, by the Viterbi algorithm on PyTorch.

The states of a text of L tokens are 2 L + 1: a blank before, between and after the tokens, and the tokens. Each frame
stays in its state, goes on by one, or goes by two past a blank between different tokens (Graves et al. 2006).
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

MOST_CELLS = 1_000_000_000  # frames x states: a byte each


def align_tokens(scores: torch.Tensor, tokens: list[int], blank: int) -> np.ndarray | None:
    """States of the likeliest path, int64 [frames], of `scores`, float log probabilities [frames, vocabulary]: state
    2 i + 1 is token i, even ones are blanks. Of paths that are equally likely, the one that goes on latest.

    None where the frames are too few for the tokens, no path is possible, or the two together are too long to hold
    (frames x states above a thousand million: about 13 minutes of speech at 50 frames and 15 characters a second).
    """
    import torch

    frames, states = len(scores), 2 * len(tokens) + 1
    if frames < fewest_frames(tokens) or frames * states > MOST_CELLS:
        return None
    spoken = torch.full((states,), blank, dtype=torch.long, device=scores.device)
    spoken[1::2] = torch.tensor(tokens, dtype=torch.long)
    jumps = torch.zeros(states, dtype=torch.bool, device=scores.device)
    jumps[3::2] = spoken[3::2] != spoken[1:-2:2]
    never = float("-inf")
    best = torch.full((states + 2,), never, dtype=scores.dtype, device=scores.device)  # two states before the first
    best[2:4] = scores[0, spoken[:2]]
    came = torch.zeros((frames, states), dtype=torch.uint8, device=scores.device)
    options = torch.empty((3, states), dtype=scores.dtype, device=scores.device)
    for frame in range(1, frames):
        options[0], options[1] = best[2:], best[1:-1]
        options[2] = best[:-2].masked_fill(~jumps, never)
        highest, came_from = options.max(0)
        came[frame] = came_from
        best[2:] = highest + scores[frame, spoken]
    last = states - 1 if states == 1 or best[-1] > best[-2] else states - 2
    if best[last + 2] == never:
        return None
    return _backtrack(came.cpu().numpy(), last)


def fewest_frames(tokens: list[int]) -> int:
    """Frames that the tokens need at least: one each, and a blank between two that are alike."""
    return max(len(tokens) + sum(one == other for one, other in pairwise(tokens)), 1)


def _backtrack(came: np.ndarray, state: int) -> np.ndarray:
    path = np.empty(len(came), np.int64)
    for frame in range(len(came) - 1, -1, -1):
        path[frame] = state
        state -= int(came[frame, state])
    return path


def token_spans(path: np.ndarray, count: int) -> np.ndarray:
    """First frame of each of `count` tokens and one past its last: int64 [count, 2]."""
    states = 2 * np.arange(count) + 1
    return np.stack([np.searchsorted(path, states), np.searchsorted(path, states, side="right")], axis=1)
