"""Changing a vocabulary: which rows of an embedding or output matrix stay, and how the others begin.

Pure functions of [rows, hidden] matrices; `checkpoints.convert` grows a backbone's with them, and
`checkpoints.tools.vocabulary` changes native checkpoints.

How new rows begin matters, for their logits enter every softmax. On SmolLM2-135M-Instruct (tied, 49,152 rows) with
5,248 rows more, the text loss of 1,125 tokens, 3.989 before, became: 3.989 with all at the mean; 4.018 drawn with mean
and full covariance (2.8 % of the probability, rows as distinct as trained ones); 4.138 with copies of other rows; 6.301
drawn column by column with the columns' deviations (73 %), which forgets that rows avoid what hidden states point at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import lcm
from typing import Any

import torch
import xxhash

from configs.schema import NewRows
from runtime.exits import BadInput

METHODS = {
    NewRows.covariance: "normal, with mean and covariance of the trained rows",
    NewRows.mean: "mean of the trained rows",
}
_RIDGE = 1e-6  # of the covariance's mean diagonal, added to it: fewer rows than columns leave it singular
_BLOCK = 1 << 12  # rows summed at once


# --- how new rows begin ---------------------------------------------------------------------------------------------


def moments(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean [hidden] and covariance [hidden, hidden] (over n, not n - 1) of rows, both in float64."""
    mean = sum(block.double().sum(0) for block in rows.split(_BLOCK)) / len(rows)
    products = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64, device=rows.device)
    for block in rows.split(_BLOCK):
        centred = block.double() - mean
        products.addmm_(centred.T, centred)
    return mean, products / len(rows)


def spread(points: torch.Tensor, mean: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    """Rows with that mean and covariance where the columns of `points` [n, hidden] have mean 0, deviation 1 and no
    correlation: mean + points L', with L L' = covariance (Cholesky). float64."""
    ridge = _RIDGE * covariance.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    factor = torch.linalg.cholesky(covariance + ridge * torch.eye(len(mean), dtype=torch.float64, device=mean.device))
    return mean + points.to(mean.device).double() @ factor.T


def begin_rows(trained: torch.Tensor, count: int, method: NewRows, seed: int, name: str) -> torch.Tensor:
    """`count` new rows of the tensor `name`, beside `trained` ones and in their dtype.

    covariance: Hewitt 2021, "Initializing new word embeddings for pretrained language models", with the noise at full
    size, so that new tokens are like average ones and yet apart; `seed` and `name` fix the draw. mean: all alike.
    """
    if method is NewRows.mean:
        return trained.double().mean(0).to(trained.dtype).expand(count, -1)
    generator = torch.Generator().manual_seed(xxhash.xxh3_64_intdigest(f"{seed}:{name}".encode()) >> 1)
    noise = torch.randn(count, trained.shape[1], generator=generator)
    return spread(noise, *moments(trained)).to(trained.dtype)


# --- which rows stay ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """`count` rows that go from `old` on to `new` on."""

    new: int
    old: int
    count: int


@dataclass(frozen=True)
class RowPlan:
    """A vocabulary's rows after surgery: `rows` of them, those of `kept` from before, the others begun anew.

    trained: the first so many of the old rows tell how new ones begin. copied: ids, in the old matrix, of what new
    rows copy instead, in turns.
    """

    rows: int
    kept: tuple[Run, ...]
    trained: int
    copied: tuple[int, ...] = ()

    def new(self) -> Iterator[tuple[int, int]]:
        """First and end of every range of new rows."""
        place = 0
        for run in sorted(self.kept, key=lambda run: run.new):
            if place < run.new:
                yield place, run.new
            place = run.new + run.count
        if place < self.rows:
            yield place, self.rows

    @property
    def new_count(self) -> int:
        return sum(end - first for first, end in self.new())


def padded(used: int, multiple: int, tensor_parallel: int = 1) -> int:
    """Rows for `used` ids, rounded up to what `multiple` and the tensor-parallel size both divide."""
    unit = lcm(multiple, tensor_parallel)
    return -(-used // unit) * unit


def plan_rows(used: int, rows: int, held: int) -> RowPlan:
    """Keep the first `used` of `held` rows, and have `rows`. Raises BadInput where a row in use would go."""
    if not 0 < used <= min(held, rows):
        raise BadInput(f"{rows} rows of {held}, of which {used} are in use: fewer than those there cannot be")
    return RowPlan(rows, (Run(0, 0, used),), used)


def plan_between(old: Mapping[str, Any], new: Mapping[str, Any], rows: int, held: int) -> RowPlan:
    """From one vocabulary to another, both as a vocabulary describes itself (`text_size`, `specials`, `ranges`).

    Text rows keep their ids; special tokens and codebooks go by their names. A codebook's rows are kept where both have
    as many. Raises BadInput where the text ids are not the same number, or rows or descriptions do not fit.
    """
    if old["text_size"] != new["text_size"]:
        raise BadInput(f"the vocabularies have {old['text_size']} and {new['text_size']} text ids: other tokenizers")
    if max(end for _, end in new["ranges"].values()) > rows or max(end for _, end in old["ranges"].values()) > held:
        raise BadInput(f"{held} rows before and {rows} after do not hold the vocabularies' ids")
    runs = [Run(0, 0, old["text_size"])]
    first_old, first_new = old["ranges"]["special"][0], new["ranges"]["special"][0]
    before = {name: first_old + index for index, name in enumerate(old["specials"])}
    for index, name in enumerate(new["specials"]):
        if name in before:
            runs.append(Run(first_new + index, before[name], 1))
    for name, (first, end) in new["ranges"].items():
        there = old["ranges"].get(name)
        if name not in ("text", "special") and there is not None and there[1] - there[0] == end - first:
            runs.append(Run(first, there[0], end - first))
    return RowPlan(rows, tuple(runs), old["text_size"])


# --- surgery --------------------------------------------------------------------------------------------------------


def operate(rows: torch.Tensor, plan: RowPlan, method: NewRows, seed: int, name: str) -> torch.Tensor:
    """The matrix `rows` [held, hidden] of tensor `name` as `plan` says, [plan.rows, hidden], in its dtype.

    Kept rows keep their bits. Raises BadInput where the plan copies ids that are not there.
    """
    result = torch.empty(plan.rows, *rows.shape[1:], dtype=rows.dtype)
    for run in plan.kept:
        result[run.new : run.new + run.count] = rows[run.old : run.old + run.count]
    if not plan.new_count:
        return result
    begun = (
        _copies(rows, plan, name)
        if plan.copied
        else begin_rows(rows[: plan.trained], plan.new_count, method, seed, name)
    )
    return _placed(result, plan, begun)


def operate_on_moments(moment: torch.Tensor, plan: RowPlan) -> torch.Tensor:
    """A moment of the optimiser, likewise: kept rows keep theirs, new ones have 0, as before a first step."""
    result = torch.zeros(plan.rows, *moment.shape[1:], dtype=moment.dtype)
    for run in plan.kept:
        result[run.new : run.new + run.count] = moment[run.old : run.old + run.count]
    return result


def operate_on_masters(masters: torch.Tensor, plan: RowPlan, operated: torch.Tensor) -> torch.Tensor:
    """fp32 parameters beside rounded ones that became `operated`: kept rows keep theirs, new ones are the rounded."""
    result = operated.to(masters.dtype, copy=True)
    for run in plan.kept:
        result[run.new : run.new + run.count] = masters[run.old : run.old + run.count]
    return result


def _copies(rows: torch.Tensor, plan: RowPlan, name: str) -> torch.Tensor:
    if wrong := [index for index in plan.copied if not 0 <= index < len(rows)]:
        raise BadInput(f"{name} has {len(rows)} rows, none with id {wrong[0]} to copy")
    repeats = -(-plan.new_count // len(plan.copied))
    return rows[torch.tensor((plan.copied * repeats)[: plan.new_count])]


def _placed(result: torch.Tensor, plan: RowPlan, begun: torch.Tensor) -> torch.Tensor:
    place = 0
    for first, end in plan.new():
        result[first:end] = begun[place : place + end - first]
        place += end - first
    return result


def grow_rows(
    rows: torch.Tensor,
    text_size: int,
    padded_size: int,
    seed: int,
    name: str,
    method: NewRows = NewRows.covariance,
) -> torch.Tensor:
    """An embedding or output matrix of [padded_size, hidden] whose first `text_size` rows are those of `rows`.

    Rows of the source past `text_size` are padding of its own and are dropped. dtype is kept. Raises BadInput if `rows`
    has fewer than `text_size` rows.
    """
    if not text_size <= min(len(rows), padded_size):
        raise BadInput(f"{name} has {len(rows)} rows and is to have {padded_size}; its tokenizer has {text_size} ids")
    return operate(rows, plan_rows(text_size, padded_size, len(rows)), method, seed, name)


def describe_growth(
    text_size: int, padded_size: int, seed: int, method: NewRows = NewRows.covariance
) -> dict[str, Any]:
    """What a checkpoint records of how its rows were made."""
    return {"kept_rows": text_size, "rows": padded_size, "new_rows": METHODS[method], "seed": seed}


def describe_plan(plan: RowPlan, method: NewRows, seed: int) -> dict[str, Any]:
    """What a checkpoint records of a surgery."""
    kept = [[run.new, run.old, run.count] for run in plan.kept]
    if not plan.new_count:
        return {"rows": plan.rows, "kept": kept}
    made = f"copies of ids {', '.join(map(str, plan.copied))}" if plan.copied else METHODS[method]
    return {"rows": plan.rows, "kept": kept, "new_rows": made, **({} if plan.copied else {"seed": seed})}


def used_ids(vocabulary: Mapping[str, Any]) -> int:
    """Ids that a vocabulary, as it describes itself, has in use."""
    ends: Sequence[int] = [end for _, end in vocabulary["ranges"].values()]
    return max(ends)
