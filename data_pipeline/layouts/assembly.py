"""Putting one Sample together, piece by piece."""

from __future__ import annotations

import numpy as np

from data_pipeline.batch import Sample
from data_pipeline.layouts.groups import group_seconds
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput

AUDIO_START = "<|audio_start|>"
AUDIO_END = "<|audio_end|>"
TRANSCRIBE = "<|transcribe|>"
SPEAK = "<|speak|>"


class Assembly:
    """Collects text, special tokens and grouped codes, each with the loss weight of its tokens."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._tokens: list[np.ndarray] = []
        self._weights: list[float] = []
        self._widths: list[int] = []  # tokens of a group in each piece
        self._audio_groups = 0

    def text(self, text: str, weight: float) -> Assembly:
        return self._add(np.asarray(self._vocabulary.encode_text(text), np.int64), weight, 1)

    def special(self, name: str, weight: float) -> Assembly:
        return self._add(np.array([self._vocabulary.special(name)], np.int64), weight, 1)

    def audio(self, groups: np.ndarray, weight: float) -> Assembly:
        """Add codes, ids [groups, group length], between the marks of audio, which have the same weight."""
        self.special(AUDIO_START, weight)
        self._add(groups.reshape(-1), weight, groups.shape[1])
        self._audio_groups += len(groups)
        return self.special(AUDIO_END, weight)

    def sample(self, key: str, end_weight: float = 1.0) -> Sample:
        """The Sample, closed by the end-of-text token."""
        self.special(self._vocabulary.end_of_text, end_weight)
        tokens = np.concatenate(self._tokens)
        counts = [len(piece) for piece in self._tokens]
        firsts = np.concatenate([np.arange(n) % width == 0 for n, width in zip(counts, self._widths, strict=True)])
        return Sample(
            tokens=tokens,
            loss_weight=np.repeat(np.asarray(self._weights, np.float32), counts),
            modality=self._vocabulary.modality_of(tokens),
            group=np.cumsum(firsts, dtype=np.int32) - 1,
            key=key,
            audio_seconds=self._audio_groups * group_seconds(self._vocabulary) if self._audio_groups else 0.0,
        )

    def _add(self, tokens: np.ndarray, weight: float, width: int) -> Assembly:
        self._tokens.append(tokens)
        self._weights.append(weight)
        self._widths.append(width)
        return self


def check_weight(option: str, weight: float) -> None:
    """Raises BadInput for a loss weight below 0."""
    if weight < 0:
        raise BadInput(f"layout option {option} is a loss weight and cannot be {weight}")
