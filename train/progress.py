"""How far a run is: what a checkpoint keeps beside parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from configs.audio_input import AudioInput
from data_pipeline.batch import FeatureSlots, Pack
from data_pipeline.loader import StepPacks
from data_pipeline.sample_bytes import DAMAGE_KINDS, LEFT_OUT_KINDS
from data_pipeline.vocabulary import Vocabulary
from train.audio_input import Heard

_NAMED = (*DAMAGE_KINDS, *LEFT_OUT_KINDS)
_KINDS = (*_NAMED, "other")


@dataclass
class Progress:
    """Totals since the first step, over all ranks. tokens leaves padding out; validated is the last validated step;
    damaged and damaged_from are how many samples were left out, by kind and by source, those included that were read
    ahead."""

    step: int = 0
    tokens: int = 0
    audio_seconds: float = 0.0
    validated: int = -1
    damaged: dict[str, int] = field(default_factory=dict)
    damaged_from: dict[str, int] = field(default_factory=dict)
    guard: dict[str, Any] = field(default_factory=dict)  # `resilience.guard.Guard.state`, as of the last save

    def state(self) -> dict[str, Any]:
        return asdict(self)

    def add(self, fed: Tally) -> None:
        """Count a step that fed `fed`, over all ranks."""
        self.step += 1
        self.tokens += int(fed.tokens)
        self.audio_seconds += fed.audio_seconds
        self.leave_out(fed)

    def leave_out(self, fed: Tally) -> None:
        """Count the damage alone of a step that was fed and not learned from."""
        for totals, counts in ((self.damaged, fed.damaged), (self.damaged_from, fed.damaged_from)):
            for key, count in counts.items():
                totals[key] = totals.get(key, 0) + count


@dataclass(frozen=True)
class Tally:
    """What one step fed the model, and the samples found damaged meanwhile, by kind and by source. As a list of numbers
    it sums over data-parallel ranks."""

    tokens: float
    padding: float
    audio_seconds: float
    attended: float  # summed over tokens: how many tokens each one attends to
    predicted: float  # places with a loss
    heard: Heard  # through encoder and adapter
    modalities: tuple[float, ...]  # tokens of each modality
    damaged: dict[str, int]
    sources: dict[str, float] = field(default_factory=dict)  # tokens of each source of the mixture
    damaged_from: dict[str, int] = field(default_factory=dict)

    def numbers(self) -> list[float]:
        named = [float(self.damaged.get(kind, 0)) for kind in _NAMED]
        other = float(sum(self.damaged.values())) - sum(named)
        by_source = [float(self.damaged_from.get(source, 0)) for source in self.sources]
        fixed = [self.tokens, self.padding, self.audio_seconds, self.attended, self.predicted, *self.heard]
        return [*fixed, *named, other, *self.modalities, *self.sources.values(), *by_source]

    def summed(self, numbers: list[float]) -> Tally:
        """The tally whose `numbers` are these: sums of this one's and of others of the same modalities and sources."""
        tokens, padding, audio_seconds, attended, predicted, *rest = numbers
        heard, rest = rest[: len(self.heard)], rest[len(self.heard) :]
        kinds, rest = rest[: len(_KINDS)], rest[len(_KINDS) :]
        modalities, rest = rest[: len(self.modalities)], rest[len(self.modalities) :]
        fed, damaged = rest[: len(self.sources)], rest[len(self.sources) :]
        return Tally(
            tokens,
            padding,
            audio_seconds,
            attended,
            predicted,
            Heard(*heard),
            tuple(modalities),
            {kind: round(count) for kind, count in zip(_KINDS, kinds, strict=True) if count},
            dict(zip(self.sources, fed, strict=True)),
            {source: round(count) for source, count in zip(self.sources, damaged, strict=True) if count},
        )


class Feeding:
    """Tallies what a loader hands out, step by step."""

    def __init__(self, loader: StepPacks, vocabulary: Vocabulary, audio: AudioInput | None) -> None:
        """audio: what the model hears with beside codes."""
        self._loader = loader
        self._vocabulary = vocabulary
        self._audio = audio
        self.restart()

    def restart(self) -> None:
        """Begin counting damage here: what the loader has counted so far was told before."""
        self._told, self._told_from = self._loader.damaged, self._loader.damaged_from

    def tally(self, packs: list[Pack]) -> Tally:
        """Of a step's packs, and the damage found since the last one."""
        told, told_from = self._told, self._told_from
        self.restart()
        damaged, damaged_from = _more(self._told, told), _more(self._told_from, told_from)
        return tally(packs, self._vocabulary, damaged, self._loader.sources, damaged_from, self._audio)


def tally(
    packs: list[Pack],
    vocabulary: Vocabulary,
    damaged: Mapping[str, int],
    sources: Sequence[str] = (),
    damaged_from: Mapping[str, int] | None = None,
    audio: AudioInput | None = None,
) -> Tally:
    """Count the tokens of `packs`; a place with several columns is one token, of all the modalities it has.

    damaged, damaged_from: samples found damaged since the last step, by kind and by source; sources: the mixture's;
    audio: as of `Feeding`.
    """
    real = [pack.tokens[: len(pack.tokens) - pack.padding] for pack in packs]
    modalities = sum(
        (np.bincount(vocabulary.modality_of(ids[ids >= 0]), minlength=len(vocabulary.modalities)) for ids in real),
        start=np.zeros(len(vocabulary.modalities)),
    )
    lengths = np.concatenate([np.asarray(pack.read, dtype=np.float64) for pack in packs])
    by_source = dict.fromkeys(sources, 0.0)
    for pack in packs if sources else ():
        for key, length in zip(pack.keys, pack.lengths, strict=False):  # padding, which has no key, is last
            by_source[key.partition("/")[0]] += length
    return Tally(
        tokens=float(sum(len(ids) for ids in real)),
        padding=float(sum(pack.padding for pack in packs)),
        audio_seconds=float(sum(pack.audio_seconds for pack in packs)),
        attended=float((lengths * (lengths + 1) / 2).sum()),
        predicted=float(sum(np.count_nonzero(pack.loss_weight) for pack in packs)),
        heard=Heard() if audio is None else heard_in(audio, [slot for pack in packs for slot in pack.slots]),
        modalities=tuple(modalities.tolist()),
        damaged=dict(damaged),
        sources=by_source,
        damaged_from=dict(damaged_from or {}),
    )


def heard_in(audio: AudioInput, slots: Sequence[FeatureSlots]) -> Heard:
    """What slots hold."""
    runs = [slot for slot in slots if slot.encoder == audio.features]
    frames = [len(slot.vectors) for slot in runs]
    vectors = [-(-count // audio.inputs) for count in frames] if audio.encoder.in_model else frames
    return Heard(
        frames=sum(frames),
        vectors=sum(vectors),
        places=sum(slot.places for slot in runs),
        attended=sum(_squares(count, audio.encoder.positions) for count in vectors),
        adapted=sum(count**2 for count in vectors),
    )


def _squares(count: int, window: int | None) -> int:
    """Vectors that `count` of them attend to in all, each to those of its window; None: to all."""
    whole, rest = divmod(count, window) if window else (0, count)
    return whole * (window or 0) ** 2 + rest**2


def _more(now: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    return {key: count - before.get(key, 0) for key, count in now.items()}
