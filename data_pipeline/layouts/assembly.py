"""Putting one Sample together, piece by piece."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from data_pipeline.batch import FeatureSlots, Sample, Wave
from data_pipeline.layouts.groups import frame_columns, lay_groups
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput

MARKS = ("<|audio_start|>", "<|audio_end|>")
TRANSCRIBE = "<|transcribe|>"
SPEAK = "<|speak|>"
_SPECIAL = re.compile(r"(<[^<>\s]+>)")


@lru_cache(256)
def _parts_of(markup: str) -> list[str]:
    """Text and special tokens in turn."""
    return _SPECIAL.split(markup)


def specials_in(markup: str) -> list[str]:
    """The special tokens in a template: whatever stands in angle brackets without a space."""
    return _SPECIAL.findall(markup)


@dataclass(frozen=True)
class Heard:
    """Speech that a sequence is given: groups of codes, int64 [groups, group length], or with an `encoder` its vectors,
    each run float16 [frames, width] with the seconds it stands for, `stride` frames in a place."""

    groups: np.ndarray
    encoder: str = ""
    stride: int = 1
    vectors: tuple[tuple[np.ndarray, float], ...] = ()

    def __bool__(self) -> bool:
        return any(len(vectors) for vectors, _ in self.vectors) if self.encoder else len(self.groups) > 0


def hear(utterances: Sequence[Utterance], vocabulary: Vocabulary, encoder: str, stride: int) -> Heard:
    """The speech of utterances one after the other; what was not spoken, or lacks the features, is left out."""
    groups = np.concatenate([lay_groups(utterance, vocabulary) for utterance in utterances])
    if not encoder:
        return Heard(groups)
    held = [utterance for utterance in utterances if encoder in utterance.features]
    return Heard(groups, encoder, stride, tuple((u.features[encoder], u.duration) for u in held))


class _Piece(NamedTuple):
    """Part of a sample. ids: of text, for the last column, or int64 [n] or [n, columns], -1 where there is none.
    weight: of each or of all. width: places of a group."""

    ids: list[int] | np.ndarray
    weight: float | np.ndarray
    width: int


class Assembly:
    """Collects text, special tokens, grouped codes and feature slots, each with the loss weight of its tokens.

    marks: the two special tokens around each run of codes, or none. frames: a group of codes is one place of several
    columns (`frame_columns`) and text stands in the last of them; else everything is one column, and a group is as
    many places as it has codes.
    """

    def __init__(self, vocabulary: Vocabulary, *, marks: Sequence[str] = MARKS, frames: bool = False) -> None:
        self.vocabulary = vocabulary
        self.columns = frame_columns(vocabulary) if frames else 1
        self._marks = tuple(marks)
        self._pieces: list[_Piece] = []
        self._length = 0
        self._slots: list[FeatureSlots] = []
        self._uncut: list[tuple[int, int]] = []
        self._seconds = 0.0
        self._audio_groups = 0

    def __len__(self) -> int:
        """Places so far."""
        return self._length

    def text(self, text: str, weight: float) -> Assembly:
        return self.ids(self.vocabulary.encode_text(text), weight)

    def markup(self, markup: str, weight: float, then: str = "") -> Assembly:
        """Add a template: special tokens stand in it by name, the rest is text. `then` is text that goes on where the
        template ends, encoded with its last part; names in it are not looked for."""
        parts = _parts_of(markup)
        if then:
            parts = [*parts[:-1], parts[-1] + then]
        for number, part in enumerate(parts):
            if number % 2:
                self.special(part, weight)
            elif part:
                self.ids(self.vocabulary.encode_inside(part), weight)
        return self

    def special(self, name: str, weight: float) -> Assembly:
        return self.ids([self.vocabulary.special(name)], weight)

    def ids(self, ids: Sequence[int], weight: float) -> Assembly:
        """Add text by its ids."""
        last = self._pieces[-1] if self._pieces else None
        if last is not None and isinstance(last.ids, list) and last.weight == weight:
            last.ids.extend(ids)
            self._length += len(ids)
            return self
        return self._add(list(ids), weight, 1)

    def audio(self, groups: np.ndarray, weight: float) -> Assembly:
        """Add codes, ids [groups, group length], between the marks of audio, if there are any, of the same weight."""
        if not self._marks:
            return self.codes(groups, weight)
        return self.special(self._marks[0], weight).codes(groups, weight).special(self._marks[1], weight)

    def codes(self, groups: np.ndarray, weight: float | np.ndarray, *, speech: bool = True) -> Assembly:
        """Add codes without marks. `weight` may be an array that broadcasts to [groups, group length]; `speech` says
        whether they stand for any."""
        self._audio_groups += len(groups) if speech else 0
        if isinstance(weight, np.ndarray):
            weight = np.broadcast_to(weight, groups.shape)
        if self.columns == 1:
            flat = weight.reshape(-1) if isinstance(weight, np.ndarray) else weight
            return self._add(groups.reshape(-1), flat, groups.shape[1])
        text = np.full((len(groups), 1), -1, np.int64)
        if isinstance(weight, np.ndarray):
            weight = np.hstack([weight, np.zeros(text.shape, np.float32)])
        return self._add(np.hstack([groups, text]), weight, 1)

    def heard(self, found: Heard, weight: float = 0.0) -> Assembly:
        """Add speech that is given, as codes or as places for an encoder's vectors, between the marks of audio."""
        if not found.encoder:
            return self.audio(found.groups, weight)
        if self._marks:
            self.special(self._marks[0], weight)
        for vectors, seconds in found.vectors:
            self.features(found.encoder, vectors, found.stride, seconds)
        return self.special(self._marks[1], weight) if self._marks else self

    def features(self, encoder: str, vectors: np.ndarray, stride: int, seconds: float) -> Assembly:
        """Add places for an encoder's vectors, float16 [frames, width], `stride` of them each; they stand for
        `seconds` of speech. They have no loss."""
        if len(vectors):
            run = FeatureSlots(encoder, vectors, stride, start=len(self))
            self._slots.append(run)
            self._seconds += seconds
            self._add(np.full(self._shape(run.places), -1, np.int64), 0.0, 1)
        return self

    def keep_together(self, start: int) -> Assembly:
        """Make all from place `start` on one group."""
        self._uncut.append((start, len(self)))
        return self

    def end(self, weight: float = 1.0) -> Assembly:
        """Add the end-of-text token."""
        return self.special(self.vocabulary.end_of_text, weight)

    def sample(self, key: str, wave: Wave | None = None) -> Sample:
        """The Sample, with its sound where there is one."""
        shape = self._shape(self._length)
        tokens, weights = np.empty(shape, np.int64), np.empty(shape, np.float32)
        group = np.empty(self._length, np.int32)
        group.fill(1)  # where a group begins, 0 elsewhere; then summed up
        at = 0
        for ids, weight, width in self._pieces:
            end = at + len(ids)
            if isinstance(ids, list) and self.columns > 1:
                tokens[at:end, :-1] = -1
                tokens[at:end, -1] = ids
            else:
                tokens[at:end] = ids
            weights[at:end] = weight
            if width > 1:
                group[at:end] = 0
                group[at:end:width] = 1
            at = end
        if self.columns > 1 or self._slots:
            weights[tokens < 0] = 0.0
        for start, end in self._uncut:
            group[start + 1 : end] = 0
        group[:1] = 0
        spoken = self._audio_groups * self.vocabulary.group_seconds if self._audio_groups else 0.0
        return Sample(
            tokens=tokens,
            loss_weight=weights,
            modality=self.vocabulary.modality_of(tokens),
            group=group.cumsum(out=group),
            key=key,
            audio_seconds=spoken + self._seconds,
            slots=tuple(self._slots),
            wave=wave,
        )

    def _shape(self, places: int) -> tuple[int, ...]:
        return (places,) if self.columns == 1 else (places, self.columns)

    def _add(self, ids: list[int] | np.ndarray, weight: float | np.ndarray, width: int) -> Assembly:
        self._pieces.append(_Piece(ids, weight, width))
        self._length += len(ids)
        return self


def check_weight(option: str, weight: float) -> None:
    """Raises BadInput for a loss weight below 0."""
    if weight < 0:
        raise BadInput(f"layout option {option} is a loss weight and cannot be {weight}")


def check_stride(stride: int) -> None:
    """Raises BadInput for a stride of features below 1."""
    if stride < 1:
        raise BadInput(f"layout option stride is a number of an encoder's frames and must be at least 1, got {stride}")


def check_marks(marks: Sequence[str]) -> None:
    """Raises BadInput unless marks of audio are two special tokens or none."""
    if len(marks) not in (0, 2) or any(specials_in(mark) != [mark] for mark in marks):
        raise BadInput(f"layout option marks is two special tokens, such as {list(MARKS)}, or none; got {list(marks)}")
