"""Samples, packs and batches: three of the four types between sound and gradient.

Most sequences have one token a place: arrays [T]. Where a frame holds several codes, or two channels run side by
side, a place has C columns: tokens, loss weights and modalities are [T, C], and a token of -1 marks a column that is
not real in its row. Such a column has loss weight 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import msgspec
import numpy as np
import torch

from data_pipeline.chunks import Chunk, chunk_of


@dataclass(frozen=True)
class FeatureSlots:
    """A run of neighbouring places that an encoder's vectors fill, through an adapter, instead of token embeddings.

    encoder: a key of `Utterance.features`. vectors: float16 [frames, width], all of this run. stride: frames that one
    place stands for (the last may have fewer). start: the first of its ceil(frames / stride) places.
    """

    encoder: str
    vectors: np.ndarray
    stride: int
    start: int

    @property
    def places(self) -> int:
        return -(-len(self.vectors) // self.stride)

    @property
    def frames(self) -> np.ndarray:
        """Frames of each place, int64 [places]."""
        return np.minimum(self.stride, len(self.vectors) - self.stride * np.arange(self.places))


@dataclass(frozen=True)
class Target:
    """What a further head is to say at each place, from the tokens up to and with it: no shift is made here.

    values: int64 (ids) or float32 (numbers), [T] or [T, C]. weight: float32, same shape, 0 where nothing is asked.
    """

    values: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True)
class Wave:
    """The sound that a whole sample's codes stand for, for models that say codes aloud.

    samples: float32 [n], at the rate of the layout that made it. speaker: float32 [width], the voice; width 0 where no
    encoder was named. seed: of whatever is drawn with this sample, so that it does not depend on the topology.
    """

    samples: np.ndarray
    speaker: np.ndarray
    seed: int


class Sample(msgspec.Struct, frozen=True, eq=False):
    """What a layout makes of utterances. All arrays have the same length T. (No dataclass, since that takes a loader
    three times as long to make.)

    tokens: int64 ids, [T] or [T, C]. loss_weight: float32, same shape, the weight of predicting this token from those
    of the places before. modality: uint8, same shape (`Vocabulary.modalities`). group: int32 [T], equal for neighbours
    that must not be cut apart. key: which sample this is, equal on every topology. audio_seconds: speech that the
    tokens and slots stand for. slots: runs of places that features fill; their tokens are -1. targets: further things
    to predict, by name. wave: the sound itself, where the layout gives it. segments: lengths of its parts, in order,
    which see nothing of each other and are in one batch all the same, as the two answers of a preference, the chosen
    one first; empty: it is one.
    """

    tokens: np.ndarray
    loss_weight: np.ndarray
    modality: np.ndarray
    group: np.ndarray
    key: str
    audio_seconds: float = 0.0
    slots: tuple[FeatureSlots, ...] = ()
    targets: Mapping[str, Target] = msgspec.field(default_factory=dict)
    wave: Wave | None = None
    segments: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Pack:
    """Samples laid end to end up to the sequence length T, as next-token prediction.

    tokens, labels: int64 [T] (or [T, C]); labels[t] is the place after t of the same segment. loss_weight: float32,
    same shape, the weight of that prediction, 0 on every segment's last place and on padding. label_modality: uint8,
    same shape. lengths: places of each sample, padding (if any) last, so that they add up to T. keys: the samples.
    padding: how many of the T places are padding. slots, targets: those of the samples, at their places in the pack; a
    target has weight 0 where a sample lacks it. waves: of the samples, in order, where they have any. segments: lengths
    of the segments of each sample that has several, by its number in `keys`.
    """

    tokens: np.ndarray
    labels: np.ndarray
    loss_weight: np.ndarray
    label_modality: np.ndarray
    lengths: tuple[int, ...]
    keys: tuple[str, ...]
    padding: int
    audio_seconds: float
    slots: tuple[FeatureSlots, ...] = ()
    targets: Mapping[str, Target] = field(default_factory=dict)
    waves: tuple[Wave, ...] = ()
    segments: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    @property
    def attended(self) -> tuple[int, ...]:
        """Lengths of what attention stays within: of every segment of every sample, and of the padding."""
        each = (self.segments.get(number, (length,)) for number, length in enumerate(self.lengths))
        return tuple(length for lengths in each for length in lengths)

    @property
    def positions(self) -> np.ndarray:
        """int64 [T], from 0 in each segment."""
        return np.concatenate([np.arange(length, dtype=np.int64) for length in self.attended])

    @property
    def read(self) -> tuple[int, ...]:
        """The same without the padding."""
        return self.attended[:-1] if self.padding else self.attended


@dataclass(frozen=True)
class Splice:
    """All vectors of one encoder in a batch, and the places they fill.

    vectors: float16 [frames, width], run after run; runs: int32 [runs + 1], where each begins in them, and frames;
    places: int64 [P], of N; frames: int64 [P], how many vectors, in order, each place stands for; longest: vectors of
    the longest run.
    """

    vectors: torch.Tensor
    runs: torch.Tensor
    places: torch.Tensor
    frames: torch.Tensor
    longest: int


@dataclass(frozen=True)
class TargetRow:
    """A `Target` of a batch: values and weight [1, N] or [1, N, C]."""

    values: torch.Tensor
    weight: torch.Tensor


@dataclass(frozen=True)
class Waves:
    """The sounds of a batch's S samples, and which places of its row each sample has.

    samples: float32 [S, longest sound], silence after each; lengths: int64 [S]; speakers: float32 [S, width]; seeds:
    int64 [S]; places: int64 [S, longest sample], of N, -1 after each sample's last.
    """

    samples: torch.Tensor
    lengths: torch.Tensor
    speakers: torch.Tensor
    seeds: torch.Tensor
    places: torch.Tensor


@dataclass(frozen=True)
class Pairs:
    """The samples of a batch that have two segments, a preferred answer and one that was not.

    keys: those of the samples, as in `Sample`. segments: int64 [pairs, 2], which of the batch's segments
    (`Batch.cu_seqlens`) the two are, the preferred one first.
    """

    keys: tuple[str, ...]
    segments: torch.Tensor


@dataclass(frozen=True)
class Batch:
    """A micro-batch of packs laid end to end as one row of N = packs x T tokens, on a device.

    tokens, labels, loss_weight (float32) and label_modality (uint8): [1, N], or [1, N, C]; positions: int64 [1, N];
    cu_seqlens: int32 [segments + 1], where each sample, or segment of one, starts, and N; longest: tokens of the
    longest of these; pairs: which of them was preferred to which, None where none was. chunks: which places attend to
    which; one, the whole row, unless `context.share_of` cut it. packs: int32 [1, N], the number of each place's pack,
    -1 for padding; None: one pack without padding. sources: uint8 [1, N], the number of each place's source in the
    mixture, 0 on padding; None: not asked for. splices: by encoder; targets: by name. waves: the samples' sounds; None:
    they have none.
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    loss_weight: torch.Tensor
    label_modality: torch.Tensor
    cu_seqlens: torch.Tensor
    longest: int
    chunks: tuple[Chunk, ...]
    packs: torch.Tensor | None = None
    sources: torch.Tensor | None = None
    splices: Mapping[str, Splice] = field(default_factory=dict)
    targets: Mapping[str, TargetRow] = field(default_factory=dict)
    waves: Waves | None = None
    pairs: Pairs | None = None

    def to(self, device: torch.device | str) -> Batch:
        return _moved(self, device)


def collate(packs: Sequence[Pack], sources: Sequence[str] = ()) -> Batch:
    """One micro-batch of `packs`, on the CPU. sources: those of the mixture, at most 256, where places are to have the
    number of theirs."""

    def row(name: str) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([getattr(pack, name) for pack in packs]))[None]

    lengths = [length for pack in packs for length in pack.attended]
    return Batch(
        tokens=row("tokens"),
        labels=row("labels"),
        positions=row("positions"),
        loss_weight=row("loss_weight"),
        label_modality=row("label_modality"),
        cu_seqlens=torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32),
        longest=max(lengths),
        chunks=(chunk_of(lengths, 0, sum(lengths)),),
        packs=torch.from_numpy(np.concatenate([_numbered(pack, number) for number, pack in enumerate(packs)]))[None],
        sources=torch.from_numpy(np.concatenate([_of_sources(pack, sources) for pack in packs]))[None]
        if sources
        else None,
        splices=_splices(packs),
        targets={
            name: TargetRow(torch.from_numpy(target.values)[None], torch.from_numpy(target.weight)[None])
            for name, target in laid_targets([(pack.targets, len(pack.tokens)) for pack in packs]).items()
        },
        waves=_waves(packs),
        pairs=_pairs(packs),
    )


def _pairs(packs: Sequence[Pack]) -> Pairs | None:
    keys: list[str] = []
    firsts: list[int] = []
    before = 0
    for pack in packs:
        for number in range(len(pack.lengths)):
            segments = len(pack.segments.get(number, (0,)))
            if segments == 2:
                keys.append(pack.keys[number])
                firsts.append(before)
            before += segments
    return Pairs(tuple(keys), torch.tensor(firsts)[:, None] + torch.arange(2)) if keys else None


def _numbered(pack: Pack, number: int) -> np.ndarray:
    """`number` at every place of a pack, but -1 on its padding."""
    places = np.full(len(pack.tokens), number, np.int32)
    places[len(places) - pack.padding :] = -1
    return places


def _of_sources(pack: Pack, sources: Sequence[str]) -> np.ndarray:
    """The number of each place's source, which the key of its sample begins with."""
    numbers = [sources.index(key.partition("/")[0]) for key in pack.keys]
    numbers += [0] * (len(pack.lengths) - len(numbers))  # padding
    return np.repeat(np.array(numbers, np.uint8), pack.lengths)


def laid_targets(parts: Sequence[tuple[Mapping[str, Target], int]]) -> dict[str, Target]:
    """Targets of neighbours, each with its length, as one: zeros where one of them lacks a target that others have."""
    known = {name: target for targets, _ in parts for name, target in targets.items()}

    def joined(name: str, array: str) -> np.ndarray:
        one = getattr(known[name], array)
        return np.concatenate(
            [
                getattr(targets[name], array) if name in targets else np.zeros((length, *one.shape[1:]), one.dtype)
                for targets, length in parts
            ]
        )

    return {name: Target(joined(name, "values"), joined(name, "weight")) for name in sorted(known)}


def _splices(packs: Sequence[Pack]) -> dict[str, Splice]:
    starts = np.cumsum([0, *(len(pack.tokens) for pack in packs)])
    by_encoder: dict[str, list[tuple[int, FeatureSlots]]] = {}
    for start, pack in zip(starts.tolist(), packs, strict=False):
        for run in pack.slots:
            by_encoder.setdefault(run.encoder, []).append((start, run))
    return {encoder: splice_of(found) for encoder, found in sorted(by_encoder.items())}


def splice_of(found: Sequence[tuple[int, FeatureSlots]]) -> Splice:
    """Runs of one encoder's slots, each with the place that its pack begins at, as one."""
    return Splice(
        vectors=torch.from_numpy(np.concatenate([run.vectors for _, run in found])),
        runs=torch.tensor([0, *np.cumsum([len(run.vectors) for _, run in found])], dtype=torch.int32),
        places=torch.from_numpy(np.concatenate([np.arange(run.places) + start + run.start for start, run in found])),
        frames=torch.from_numpy(np.concatenate([run.frames for _, run in found])),
        longest=max(len(run.vectors) for _, run in found),
    )


def _waves(packs: Sequence[Pack]) -> Waves | None:
    starts = np.cumsum([0, *(len(pack.tokens) for pack in packs)]).tolist()
    waves = [wave for pack in packs for wave in pack.waves]
    if not waves:
        return None
    ranges = [
        range(begin, begin + length)
        for start, pack in zip(starts, packs, strict=False)
        for begin, length in zip(start + np.cumsum([0, *pack.lengths]), pack.lengths[: len(pack.waves)], strict=False)
    ]
    samples = np.zeros((len(waves), max(len(wave.samples) for wave in waves)), np.float32)
    places = np.full((len(waves), max(map(len, ranges))), -1, np.int64)
    for row, (wave, own) in enumerate(zip(waves, ranges, strict=True)):
        samples[row, : len(wave.samples)] = wave.samples
        places[row, : len(own)] = own
    return Waves(
        samples=torch.from_numpy(samples),
        lengths=torch.tensor([len(wave.samples) for wave in waves]),
        speakers=torch.from_numpy(np.stack([wave.speaker for wave in waves])),
        seeds=torch.tensor([wave.seed for wave in waves]),
        places=torch.from_numpy(places),
    )


def sent(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """A tensor on the CPU, on `device`; to a GPU through pinned memory, so that nobody waits."""
    pinned = torch.device(device).type == "cuda"
    return (tensor.pin_memory() if pinned else tensor).to(device, non_blocking=True)


def _moved(part: Any, device: torch.device | str) -> Any:
    """`part` with every tensor in it `sent` to `device`."""
    values: dict[str, Any] = {f.name: getattr(part, f.name) for f in fields(part)}
    for name, value in values.items():
        if torch.is_tensor(value):
            values[name] = sent(value, device)
        elif isinstance(value, Mapping):
            values[name] = {key: _moved(inner, device) for key, inner in value.items()}
        elif name == "chunks":
            values[name] = tuple(_moved(chunk, device) for chunk in value)
        elif isinstance(value, Pairs | Waves):
            values[name] = _moved(value, device)
    return type(part)(**values)
