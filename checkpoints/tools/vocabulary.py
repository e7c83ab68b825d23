"""Another vocabulary for a native checkpoint: rows grown, cut, padded for another topology, or moved to a new corpus's
ids. The numbers are `checkpoints.vocabulary_surgery`'s."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from checkpoints import vocabulary_surgery as surgery
from checkpoints.derived import Part, derive
from checkpoints.manifest import MODEL_PREFIX
from checkpoints.shapes import MATRICES
from checkpoints.slices import Slice, slices
from checkpoints.tools.opening import Opened, is_parameter, new_place, opened, target_of
from checkpoints.vocabulary_surgery import RowPlan
from configs.schema import NewRows, Precision
from runtime.exits import BadInput

VOCABULARY_FILE = "vocabulary.json"
_MASTERS = ".fp32_param."
_MULTIPLE = 128  # of rows, where neither the checkpoint nor the command says another


@dataclass(frozen=True)
class Wanted:
    """What the vocabulary is to become: `rows`, so many; or `like` another as it describes itself, with its files by
    name; or neither, and rows are padded anew, to what `multiple` and the tensor-parallel size divide.

    used: ids in use, which stay; None: as the checkpoint's own vocabulary says.
    """

    rows: int | None = None
    like: Mapping[str, Any] | None = None
    files: Mapping[str, str] | None = None
    multiple: int | None = None
    tensor: int = 1
    used: int | None = None


def read_vocabulary(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The vocabulary of a corpus or checkpoint folder, as it describes itself, and its files. Raises BadInput where it
    has none."""
    files = {}
    for name in (VOCABULARY_FILE, "tokenizer.json"):
        try:
            files[name] = (folder / name).read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            raise BadInput(f"{folder / name}: cannot be read ({error})") from error
    try:
        described = json.loads(files[VOCABULARY_FILE])
        ends = [int(end) for _, end in described["ranges"].values()]
        if not ends or not isinstance(described["specials"], list) or not isinstance(described["text_size"], int):
            raise ValueError("text_size, specials or ranges")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{folder / VOCABULARY_FILE} is damaged ({error})") from error
    return described, files


def change_vocabulary(
    folder: Path,
    out: Path,
    wanted: Wanted,
    *,
    new_rows: NewRows = NewRows.covariance,
    copied: tuple[int, ...] = (),
    seed: int = 0,
    optimizer: bool = False,
    dtype: Precision | None = None,
) -> Path:
    """Write a native checkpoint with another vocabulary as the checkpoint `out`; tied and untied heads alike.

    Rows of ids that stay keep their bits; the others begin as `new_rows` says, from the text rows where the vocabulary
    is known, or copy the ids of `copied`, in turns. `optimizer` carries the optimiser's state along: moments of new
    rows are 0, their fp32 parameters what the parameters are; without, it stays behind with the loader's place.
    `dtype`: what all parameters become; they keep theirs otherwise. Returns `out`. Raises BadInput where the checkpoint
    is damaged, or ids in use would go.
    """
    if optimizer and dtype is not None:
        raise BadInput("optimiser state goes with parameters of one dtype: leave out one of the two")
    new_place(out)
    with opened(folder) as source:
        plan, vocabulary = _plan(source, wanted)
        plan = replace(plan, copied=copied)
        operation = _Operation(source, plan, new_rows, seed)
        pieces = [piece for piece in slices(source.reader.tensors) if optimizer or is_parameter(piece.name)]
        parts = [operation.part(piece, dtype) for piece in pieces]
        texts = dict(wanted.files or {})
        if vocabulary is not None and VOCABULARY_FILE in source.manifest.files and not texts:
            texts = {VOCABULARY_FILE: json.dumps(vocabulary, indent=2)}
        origin = {**source.manifest.origin, "vocabulary": surgery.describe_plan(plan, new_rows, seed)}
        return derive(
            source.folder,
            out,
            [parts],
            doing="changing the vocabulary",
            goes_on=optimizer,
            texts=texts,
            topology={},
            vocabulary=vocabulary,
            origin=origin,
        )


def _plan(source: Opened, wanted: Wanted) -> tuple[RowPlan, dict[str, Any] | None]:
    """What happens to the rows, and how the vocabulary describes itself then."""
    name = MODEL_PREFIX + MATRICES[0]
    if name not in source.reader.tensors:
        raise BadInput(f"{source.folder} has no {MATRICES[0]}: no vocabulary to change")
    held, known = source.reader.tensors[name].shape[0], source.manifest.vocabulary
    multiple = wanted.multiple or (wanted.like or known or {}).get("multiple", _MULTIPLE)
    if wanted.like is not None:
        if known is None:
            raise BadInput(f"{source.folder} does not say which ids it has; give rows, not another vocabulary")
        rows = wanted.rows or surgery.padded(surgery.used_ids(wanted.like), multiple, wanted.tensor)
        return surgery.plan_between(known, wanted.like, rows, held), dict(wanted.like)
    used = wanted.used or (surgery.used_ids(known) if known else None)
    if used is None:
        raise BadInput(f"{source.folder} does not say how many ids are in use; say so with --used")
    if known and used < surgery.used_ids(known):
        raise BadInput(f"{source.folder} has {surgery.used_ids(known)} ids in use, more than {used}")
    rows = wanted.rows or surgery.padded(used, multiple, wanted.tensor)
    plan = surgery.plan_rows(used, rows, held)
    if known:
        plan = replace(plan, trained=known["text_size"])
        known = {**known, "multiple": rows if wanted.rows else surgery.padded(1, multiple, wanted.tensor)}
    return plan, known


class _Operation:
    """One surgery on one checkpoint's tensors."""

    def __init__(self, source: Opened, plan: RowPlan, new_rows: NewRows, seed: int) -> None:
        self._reader = source.reader
        self._plan = plan
        self._new_rows = new_rows
        self._seed = seed

    def part(self, piece: Slice, dtype: Precision | None) -> Part:
        """What becomes of a slice: most stay as they are."""
        target = target_of(piece, dtype)
        if not piece.name.endswith(MATRICES):
            return Part.of(replace(piece, dtype=target), lambda: piece.read(self._reader).to(target))
        resized = replace(piece, shape=(self._plan.rows, *piece.shape[1:]), dtype=target)
        return Part.of(resized, partial(self._resized, piece, target))

    def _resized(self, piece: Slice, target: torch.dtype) -> torch.Tensor:
        if is_parameter(piece.name):
            return self._parameter(piece.name).to(target)
        state = piece.read(self._reader)
        if _MASTERS not in piece.name:
            return surgery.operate_on_moments(state, self._plan)
        model = MODEL_PREFIX + piece.name.partition(f".{MODEL_PREFIX}")[2]
        return surgery.operate_on_masters(state, self._plan, self._parameter(model))

    def _parameter(self, name: str) -> torch.Tensor:
        return surgery.operate(self._reader.read(name), self._plan, self._new_rows, self._seed, name)
