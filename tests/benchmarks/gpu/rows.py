"""Packed rows of interleaved text and speech codes, made of nothing but a seed.

A document is 30 to 500 words (our choice, uniform in the logarithm); spans of 4 to 16 words are text, at 1.3 tokens a
word, or speech, at 3 words a second in Step-Audio's two codebooks, `[L L S S S]` each 120 ms, 41.67 codes a second
(2502.11946, section 3.1). Ids follow a power law, so that there is something to learn. Packing is training's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_pipeline.batch import Pack, Sample
from data_pipeline.packing import fill_packs

WORDS_A_SECOND = 3.0
TOKENS_A_WORD = 1.3
GROUP_SECONDS = 0.12
MODALITIES = ("text", "linguistic", "semantic")


@dataclass(frozen=True)
class Ids:
    """A vocabulary: text first, then the two codebooks; `rows` of the embedding, all in use."""

    rows: int
    linguistic: int
    semantic: int

    @property
    def text(self) -> int:
        return self.rows - self.linguistic - self.semantic


STEP_AUDIO = Ids(rows=74_752, linguistic=1024, semantic=4096)
SMALL = Ids(rows=512, linguistic=32, semantic=64)


def packed_rows(count: int, length: int, ids: Ids, seed: int, words: tuple[int, int] = (30, 500)) -> list[Pack]:
    """`count` packs of `length` tokens."""
    rng = np.random.default_rng(seed)
    samples: list[Sample] = []
    wanted = (count + 2) * length  # the last packs are the emptiest, and not taken
    while wanted > 0:
        samples.append(_document(rng, ids, length, words, len(samples)))
        wanted -= len(samples[-1])
    return fill_packs(samples, length, padding_id=0)[:count]


def _document(rng: np.random.Generator, ids: Ids, longest: int, words: tuple[int, int], number: int) -> Sample:
    left = int(np.exp(rng.uniform(*np.log(words))))
    parts: list[tuple[np.ndarray, np.ndarray]] = []  # tokens and modalities
    seconds = 0.0
    while left > 0:
        span = min(left, int(rng.integers(4, 17)))
        left -= span
        if rng.random() < 0.5:
            tokens = _likely(rng, ids.text, max(1, round(TOKENS_A_WORD * span)))
            parts.append((tokens, np.zeros(len(tokens), np.uint8)))
            continue
        groups = max(1, round(span / WORDS_A_SECOND / GROUP_SECONDS))
        seconds += groups * GROUP_SECONDS
        linguistic = ids.text + _likely(rng, ids.linguistic, 2 * groups).reshape(groups, 2)
        semantic = ids.text + ids.linguistic + _likely(rng, ids.semantic, 3 * groups).reshape(groups, 3)
        tokens = np.concatenate([linguistic, semantic], axis=1).reshape(-1)
        parts.append((tokens, np.tile(np.array([1, 1, 2, 2, 2], np.uint8), groups)))
    tokens, modality = (np.concatenate(part)[:longest] for part in zip(*parts, strict=True))
    return Sample(
        tokens=tokens,
        loss_weight=np.ones(len(tokens), np.float32),
        modality=modality,
        group=np.arange(len(tokens), dtype=np.int32),
        key=f"synthetic/{number}",
        audio_seconds=seconds,
    )


def _likely(rng: np.random.Generator, size: int, count: int) -> np.ndarray:
    """int64 [count] of 0..size-1, the lower the likelier."""
    return (size * rng.random(count) ** 4).astype(np.int64)


def attended(packs: list[Pack]) -> float:
    """Tokens attended to, added up over all tokens but padding."""
    return float(sum(length * (length + 1) / 2 for pack in packs for length in pack.read))


def real_tokens(packs: list[Pack]) -> int:
    return sum(len(pack.tokens) - pack.padding for pack in packs)


def predicted(packs: list[Pack]) -> int:
    """Places with a loss."""
    return int(sum(np.count_nonzero(pack.loss_weight) for pack in packs))
