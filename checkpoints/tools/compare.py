"""How two checkpoints differ: names, shapes, dtypes, and the numbers of every tensor, slice by slice."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from checkpoints.manifest import TensorRecord
from checkpoints.slices import TensorReader, slices
from checkpoints.tools.opening import ForeignReader, is_native, is_parameter, opened
from configs.parameter_names import matcher
from runtime.exits import BadInput
from runtime.progress import Progress, bytes_line

_BLOCK = 1 << 16  # elements compared at once, in float64: what stays in a core's cache


@dataclass(frozen=True)
class Difference:
    """How tensor `name` of A and that of B differ.

    largest: of |a - b|; relative: ||a - b|| / ||a||, Frobenius norms; cosine of the two as vectors; `same` of
    `elements` have the same bits. Sums are in float64. NaN against anything but the same bits makes all three NaN.
    """

    name: str
    elements: int
    same: int
    largest: float
    relative: float
    cosine: float

    @property
    def identical(self) -> bool:
        """The same bits throughout."""
        return self.same == self.elements

    def within(self, tolerance: float) -> bool:
        """Whether no two elements are further apart than `tolerance`, absolute. NaNs of other bits are."""
        return self.identical or self.largest <= tolerance


@dataclass(frozen=True)
class Comparison:
    """All that is different between A and B. mismatched: names in both with another shape or dtype, and both records;
    differences: one for each name that could be compared."""

    only_a: list[str]
    only_b: list[str]
    mismatched: dict[str, tuple[TensorRecord, TensorRecord]]
    differences: list[Difference]

    def equal(self, tolerance: float = 0.0) -> bool:
        """Whether both hold the same names, shapes and dtypes, and the same bits, or numbers within `tolerance`."""
        structure = not (self.only_a or self.only_b or self.mismatched)
        return structure and all(found.within(tolerance) for found in self.differences)


def compare_folders(a: Path, b: Path, *, patterns: Iterable[str] = ("*",), optimizer: bool = True) -> Comparison:
    """Compare two native checkpoints, or the newest ones of two runs, or parameters of any two formats of one naming.

    `patterns` choose tensors by name (configs/parameter_names.py; between native ones with the prefix `model.` and
    layers stacked, else each layer by itself); without `optimizer` the model's alone are compared.

    Raises BadInput where one is damaged, where the patterns choose nothing in either, or where the formats have no name
    in common.
    """
    with ExitStack() as stack:
        checkpoints = [stack.enter_context(opened(folder)) if is_native(folder) else None for folder in (a, b)]
        readers: list[TensorReader] = [
            native.reader if native and all(checkpoints) else ForeignReader(native.folder if native else folder)
            for native, folder in zip(checkpoints, (a, b), strict=True)
        ]
        foreign = not all(checkpoints)
        chosen = [_chosen(reader.tensors, list(patterns), optimizer or foreign) for reader in readers]
        if not any(chosen):
            raise BadInput(f"no tensor of {a} or {b} has a name like {', '.join(patterns)}")
        if foreign and not chosen[0].keys() & chosen[1].keys():
            raise BadInput(f"{a} and {b} have no name in common, such as {next(iter(chosen[0] or chosen[1]))}")
        return compare(readers[0], readers[1], chosen[0], chosen[1])


def _chosen(tensors: Mapping[str, TensorRecord], patterns: list[str], optimizer: bool) -> dict[str, TensorRecord]:
    expressions = [matcher(pattern) for pattern in patterns]
    return {
        name: record
        for name, record in tensors.items()
        if (optimizer or is_parameter(name)) and any(expression.fullmatch(name) for expression in expressions)
    }


def compare(
    a: TensorReader, b: TensorReader, in_a: Mapping[str, TensorRecord], in_b: Mapping[str, TensorRecord]
) -> Comparison:
    """Compare the tensors `in_a` of `a` with those `in_b` of `b`. Tensors of one shape and two dtypes are compared as
    numbers, and count as mismatched too."""
    both = sorted(in_a.keys() & in_b.keys())
    comparable = [name for name in both if in_a[name].shape == in_b[name].shape]
    total = sum(piece.nbytes for piece in slices({name: in_a[name] for name in comparable}))
    found, done = [], 0
    with Progress("megaphone").phase("comparing", total, told=bytes_line) as show:
        for name in comparable:
            sums = _Sums(bits=in_a[name].dtype == in_b[name].dtype)
            for piece in slices({name: in_a[name]}):
                sums.add(piece.read(a), piece.read(b))
                done += piece.nbytes
                show(done)
            found.append(sums.difference(name))
    return Comparison(
        sorted(in_a.keys() - in_b.keys()),
        sorted(in_b.keys() - in_a.keys()),
        {name: (in_a[name], in_b[name]) for name in both if in_a[name] != in_b[name]},
        found,
    )


class _Sums:
    """What a difference is made of, over the blocks of a tensor."""

    def __init__(self, bits: bool) -> None:
        self._bits = bits
        self._elements = self._same = 0
        self._largest = self._aa = self._bb = self._ab = self._dd = 0.0

    def add(self, a: torch.Tensor, b: torch.Tensor) -> None:
        for x, y in zip(a.flatten().split(_BLOCK), b.flatten().split(_BLOCK), strict=True):
            self._elements += len(x)
            if self._bits and torch.equal(_as_integers(x), _as_integers(y)):
                self._same += len(x)
                square = x.double().square().sum().item()
                self._aa, self._bb, self._ab = self._aa + square, self._bb + square, self._ab + square
                continue
            same = _as_integers(x) == _as_integers(y) if self._bits else torch.zeros(len(x), dtype=torch.bool)
            self._same += int(same.sum())
            x, y = x.double(), y.double()
            apart = torch.where(same, 0.0, x - y).abs()  # equal infinities and NaNs are no difference
            highest = apart.max().item() if len(apart) else 0.0
            self._largest = math.nan if math.isnan(highest) else max(self._largest, highest)
            self._dd += apart.square().sum().item()
            self._aa += x.square().sum().item()
            self._bb += y.square().sum().item()
            self._ab += (x * y).sum().item()

    def difference(self, name: str) -> Difference:
        norms = math.sqrt(self._aa) * math.sqrt(self._bb)
        identical = self._same == self._elements
        return Difference(
            name,
            self._elements,
            self._same,
            self._largest,
            0.0 if identical or not self._dd else math.sqrt(self._dd / self._aa) if self._aa else math.inf,
            1.0 if identical or not (self._aa or self._bb) else self._ab / norms if norms else 0.0,
        )


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _as_integers(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(_INTEGERS[tensor.dtype.itemsize])


def lines(found: Comparison, tolerance: float, *, every: bool = False) -> Iterator[str]:
    """A comparison as lines of text: what is in one alone, mismatches, a table of what is apart (of `every` tensor),
    and a sum."""
    for side, names in (("A", found.only_a), ("B", found.only_b)):
        yield from (f"only in {side}: {name}" for name in names)
    for name, (a, b) in found.mismatched.items():
        yield f"{name}: {list(a.shape)} {a.dtype} in A, {list(b.shape)} {b.dtype} in B"
    shown = [item for item in found.differences if every or not item.within(tolerance)]
    if shown:
        yield f"{'largest':>10}  {'relative':>10}  {'cosine':>12}  {'same bits':>10}  tensor"
    for item in sorted(shown, key=lambda item: item.name):
        share = item.same / item.elements if item.elements else 1.0
        yield f"{item.largest:10.3e}  {item.relative:10.3e}  {item.cosine:12.9f}  {share:10.2%}  {item.name}"
    same = sum(item.identical for item in found.differences)
    near = sum(item.within(tolerance) for item in found.differences) - same
    within = f", {near} within {tolerance:g}" if tolerance else ""
    yield (
        f"{len(found.differences)} tensors compared: {same} bit-identical{within}, "
        f"{len(found.differences) - same - near} apart; {len(found.only_a)} only in A, {len(found.only_b)} only in B, "
        f"{len(found.mismatched)} of another shape or dtype"
    )
