"""Averages of checkpoints' weights: of several with given weights, or exponential over a run's."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

from checkpoints import lora
from checkpoints.derived import Part, derive
from checkpoints.dtypes import DTYPES
from checkpoints.formats.native import NativeReader
from checkpoints.manifest import TensorRecord
from checkpoints.slices import Slice, slices
from checkpoints.tools.opening import Opened, is_parameter, new_place, opened
from configs.schema import Precision
from runtime.exits import BadInput

_BLOCK = 1 << 21  # elements summed at once, in float64


def exponential_weights(count: int, decay: float) -> list[float]:
    """Weights of checkpoints, oldest first, such that their average is the last of: e = x0, e = decay e + (1 - decay) x
    for each x after it. They sum to 1. Raises BadInput where `decay` is not in [0, 1)."""
    if not 0 <= decay < 1:
        raise BadInput(f"a decay is from 0 to below 1, not {decay}")
    later = [(1 - decay) * decay ** (count - 1 - index) for index in range(1, count)]
    return [decay ** (count - 1), *later]


def average(checkpoints: Sequence[Path], weights: Sequence[float], out: Path, dtype: Precision | None = None) -> Path:
    """Write the weighted average of native checkpoints' parameters as the checkpoint `out`; weights need not sum to 1.

    Sums are in float64, slice by slice, and rounded once, to the dtype that the parameters have, or to `dtype`. Rest
    and step are the last one's; optimiser state and the loader's place stay behind. Returns `out`. Raises BadInput
    where one is damaged, they hold other tensors or vocabularies, or low-rank updates: the mean of factors is no
    factor of the mean.
    """
    _check_weights(checkpoints, weights)
    new_place(out)
    with ExitStack() as stack:
        sources = [stack.enter_context(opened(checkpoint)) for checkpoint in checkpoints]
        tensors = _common(sources, dtype)
        readers = [source.reader for source in sources]
        shares = [weight / sum(weights) for weight in weights]
        parts = [Part.of(piece, partial(_mean, piece, readers, shares)) for piece in slices(tensors)]
        averaged = [
            {"checkpoint": source.folder.name, "step": source.manifest.step, "weight": weight}
            for source, weight in zip(sources, weights, strict=True)
        ]
        last = sources[-1]
        origin = {**last.manifest.origin, "averaged": averaged}
        return derive(last.folder, out, [parts], doing="averaging", topology={}, origin=origin)


def _check_weights(checkpoints: Sequence[Path], weights: Sequence[float]) -> None:
    if len(checkpoints) != len(weights):
        raise BadInput(f"{len(checkpoints)} checkpoints and {len(weights)} weights; there is one for each")
    if len(checkpoints) < 2:
        raise BadInput(f"{checkpoints[0]} is one checkpoint; an average takes several")
    if any(not 0 <= weight < float("inf") for weight in weights) or not sum(weights):
        raise BadInput(f"weights {':'.join(f'{weight:g}' for weight in weights)}: none is below 0, and not all are 0")


def _common(sources: Sequence[Opened], dtype: Precision | None) -> dict[str, TensorRecord]:
    """The parameters that all checkpoints hold alike, with the dtype they are to have. Raises BadInput where they are
    not alike."""
    first = sources[0]
    held = {name: record for name, record in first.reader.tensors.items() if is_parameter(name)}
    if lora.updated(held):
        raise BadInput(f"{first.folder} holds low-rank updates; merge them first (megaphone checkpoint merge)")
    for source in sources[1:]:
        theirs = {name: record for name, record in source.reader.tensors.items() if is_parameter(name)}
        if apart := sorted(held.keys() ^ theirs.keys()):
            raise BadInput(f"{first.folder} and {source.folder} are other models: only one holds {apart[0]}")
        for name, record in held.items():
            if record.shape != theirs[name].shape:
                shapes = f"{list(record.shape)} in {first.folder}, {list(theirs[name].shape)} in {source.folder}"
                raise BadInput(f"{name} is {shapes}")
            if dtype is None and record.dtype != theirs[name].dtype:
                dtypes = f"{record.dtype} in {first.folder}, {theirs[name].dtype} in {source.folder}"
                raise BadInput(f"{name} is {dtypes}; say with --dtype what the average is to be")
        if source.manifest.vocabulary != first.manifest.vocabulary:
            raise BadInput(f"{first.folder} and {source.folder} have other vocabularies")
    if dtype is None:
        return held
    return {name: TensorRecord(record.shape, DTYPES[dtype]) for name, record in held.items()}


def _mean(piece: Slice, readers: Sequence[NativeReader], shares: Sequence[float]) -> torch.Tensor:
    """A slice of the average. Rows are read a few at a time, so that memory does not grow with the checkpoints."""
    result = torch.empty(piece.stored, dtype=piece.dtype)
    stacked = piece.layer is not None
    rows = result[0] if stacked else result
    width = max(1, piece.elements // max(1, len(rows)))
    step = max(1, _BLOCK // width)
    for reader in readers:
        reader.release()
    for first in range(0, len(rows), step):
        into = rows[first : first + step]
        offsets = (*piece.offsets[:stacked], first, *(0 for _ in into.shape[1:]))
        sizes = (*(1 for _ in range(stacked)), *into.shape)
        total = torch.zeros(sizes, dtype=torch.float64)
        for reader, share in zip(readers, shares, strict=True):
            total.add_(reader.read_box(piece.name, offsets, sizes).double(), alpha=share)
        into.copy_(total.view(into.shape))
    return result
