"""Filling packs of exactly T tokens from a window of samples."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import msgspec
import numpy as np

from data_pipeline.batch import FeatureSlots, Pack, Sample, Target, laid_targets
from runtime.exits import BadInput


def split_long(sample: Sample, length: int) -> list[Sample]:
    """Cut a sample of more than `length` places into pieces of at most that many, between groups only.

    The pieces are samples of their own: keys end in `#0`, `#1`, ..., seconds of audio go with the audio tokens and
    feature slots. Raises BadInput where one group is longer than `length`. Samples of several segments are not cut.
    """
    if len(sample) <= length:
        return [sample]
    ends = np.append(np.flatnonzero(np.diff(sample.group)) + 1, len(sample))
    is_audio: np.ndarray = np.any(sample.modality.reshape(len(sample), -1) > 0, axis=1)
    for run in sample.slots:
        is_audio[run.start : run.start + run.places] = True
    audio = max(1, int(np.count_nonzero(is_audio)))
    pieces: list[Sample] = []
    start = 0
    while start < len(sample):
        fitting = int(np.searchsorted(ends, start + length, side="right")) - 1
        end = int(ends[fitting]) if fitting >= 0 else 0
        if end <= start:
            raise BadInput(f"train.sequence_length {length} is shorter than one group of audio codes; make it longer")
        pieces.append(
            msgspec.structs.replace(
                sample,
                tokens=sample.tokens[start:end],
                loss_weight=sample.loss_weight[start:end],
                modality=sample.modality[start:end],
                group=sample.group[start:end],
                key=f"{sample.key}#{len(pieces)}",
                audio_seconds=sample.audio_seconds * int(np.count_nonzero(is_audio[start:end])) / audio,
                slots=slots_between(sample.slots, start, end),
                targets={
                    name: Target(target.values[start:end], target.weight[start:end])
                    for name, target in sample.targets.items()
                },
            )
        )
        start = end
    return pieces


def slots_between(slots: Sequence[FeatureSlots], start: int, end: int) -> tuple[FeatureSlots, ...]:
    """The parts of the runs that lie in [start, end), counted from `start`."""
    parts = []
    for run in slots:
        first, last = max(run.start, start), min(run.start + run.places, end)
        if first < last:
            vectors = run.vectors[(first - run.start) * run.stride : (last - run.start) * run.stride]
            parts.append(replace(run, vectors=vectors, start=first - start))
    return tuple(parts)


def best_fit(sizes: Sequence[int], length: int) -> list[list[int]]:
    """Share out numbers 0..n-1, of `sizes` from 1 to `length`, over bins of `length`, by best fit decreasing.

    Bins are ascending lists of numbers, sorted by their first. At most 11/9 of the fewest possible bins are used,
    and a few more (Johnson et al., SIAM Journal on Computing 3, 1974).
    """
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free, bin), ascending
    for number in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        at = bisect_left(room, (sizes[number], -1))
        if at < len(room):
            free, chosen = room.pop(at)
        else:
            free, chosen = length, len(bins)
            bins.append([])
        bins[chosen].append(number)
        insort(room, (free - sizes[number], chosen))
    return sorted(sorted(members) for members in bins)


def fill_packs(samples: Sequence[Sample], length: int, padding_id: int) -> list[Pack]:
    """Lay `samples`, each of 1 to `length` places and all of the same columns, into packs of `length` places.

    Every sample is in one pack, uncut. Inside a pack samples keep their order, and packs go by their first sample,
    so that the order of the stream is kept as well as filling allows. Padding has `padding_id` in its last column (the
    one of text, where frames have one) and -1 in others. Raises BadInput for samples of different columns.
    """
    shapes = {sample.tokens.shape[1:]: sample.key for sample in samples}
    if len(shapes) > 1:
        counts = " and ".join(f"{shape[0] if shape else 1} ({key})" for shape, key in shapes.items())
        raise BadInput(f"one pack cannot hold samples of {counts} columns; give the sources layouts that make as many")
    bins = best_fit([len(sample) for sample in samples], length)
    columns = next(iter(shapes), ())
    return [_lay([samples[i] for i in members], length, padding_id, columns) for members in bins]


def filler(length: int, padding_id: int, columns: int = 1) -> Pack:
    """A pack of nothing but padding."""
    return _lay([], length, padding_id, () if columns == 1 else (columns,))


def _lay(samples: Sequence[Sample], length: int, padding_id: int, columns: tuple[int, ...]) -> Pack:
    """One pack; `columns` is (C,) or, of one column, ()."""
    lengths = [len(sample) for sample in samples]
    padding = length - sum(lengths)
    nothing = np.full((padding + 1, *columns), padding_id, np.int64)  # one more, which is the last place's label
    if columns:
        nothing[:, :-1] = -1
    none = np.zeros(nothing.shape, np.float32)
    laid = np.concatenate([*(sample.tokens for sample in samples), nothing])
    loss_weight = np.concatenate([*(sample.loss_weight for sample in samples), none])[1:]
    label_modality = np.concatenate([*(sample.modality for sample in samples), none.astype(np.uint8)])[1:]
    tokens, labels = laid[:-1], laid[1:].copy()
    starts = [0, *accumulate(lengths)]
    slots = [
        replace(run, start=start + run.start)
        for start, sample in zip(starts, samples, strict=False)
        for run in sample.slots
    ]
    parts = [(sample.targets, len(sample)) for sample in samples]
    if padding:
        lengths.append(padding)
        parts.append(({}, padding))
    segments = {number: sample.segments for number, sample in enumerate(samples) if len(sample.segments) > 1}
    attended = [length for number, whole in enumerate(lengths) for length in segments.get(number, (whole,))]
    lasts = [end - 1 for end in accumulate(attended)]
    labels[lasts], loss_weight[lasts], label_modality[lasts] = nothing[0], 0, 0
    return Pack(
        tokens=tokens,
        labels=labels,
        loss_weight=loss_weight,
        label_modality=label_modality,
        lengths=tuple(lengths),
        keys=tuple(sample.key for sample in samples),
        padding=padding,
        audio_seconds=sum(sample.audio_seconds for sample in samples),
        slots=tuple(slots),
        targets=laid_targets(parts),
        waves=tuple(sample.wave for sample in samples if sample.wave is not None),
        segments=segments,
    )
