"""The divergence from a teacher against float64 formulas over all rows at once, and over real tensor-parallel ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ranks import run_ranks
from train.models.heads.distillation_loss import Taught, TaughtRange, distillation_loss

ROWS = 50
RANGES = ((0, 30), (30, 34), (34, 50))  # text, and two codebooks; two ranks' rows meet inside the first
Case = tuple[torch.Tensor, torch.Tensor, Taught, torch.Tensor]


def a_case(n: int, *, k: int, temperature: float = 1.0, chunk: int = 0, seed: int = 0, scale: float = 1.0) -> Case:
    """States, the head, the top k of a random teacher at most places, and its whole distribution float64 [n, ROWS] over
    each place's range."""
    rng = torch.Generator().manual_seed(seed)
    states, weight = torch.randn(n, 8, generator=rng) * scale, torch.randn(ROWS, 8, generator=rng)
    teacher = torch.randn(n, ROWS, generator=rng, dtype=torch.float64) * 2
    whole = torch.zeros(n, ROWS, dtype=torch.float64)
    parts = []
    order = torch.randperm(n, generator=rng)[: max(1, 4 * n // 5)]
    for number, (start, stop) in enumerate(RANGES):
        places = order[number :: len(RANGES)]
        p = (teacher[places, start:stop] / temperature).softmax(1)
        whole[places, start:stop] = p
        top = p.topk(min(k, stop - start))
        ids = torch.full((len(places), k), -1)
        chances = torch.zeros(len(places), k + 1, dtype=torch.float64)
        ids[:, : top.values.shape[1]], chances[:, : top.values.shape[1]] = top.indices + start, top.values
        chances[:, -1] = (1 - chances.sum(1)).clamp(min=0) if k < stop - start else 0
        parts.append(TaughtRange(start, stop, places, torch.rand(len(places), generator=rng), ids, chances))
    return states, weight, Taught(tuple(parts), temperature, chunk), whole


def exact(states: torch.Tensor, weight: torch.Tensor, taught: Taught) -> dict[str, torch.Tensor]:
    """In float64, place by place and row by row, with autograd's gradients."""
    states, weight = (tensor.detach().double().requires_grad_() for tensor in (states, weight))
    each = torch.zeros(len(states), dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    for part in taught.ranges:
        q = (states[part.places] @ weight[part.start : part.stop].t() / taught.temperature).softmax(1)
        for row, place in enumerate(part.places.tolist()):
            known = part.ids[row] >= 0
            ids, p = part.ids[row][known] - part.start, part.chances[row].double()
            kl = sum(p[: len(ids)] * (p[: len(ids)].log() - q[row, ids].log()))
            if p[-1] > 0:
                others = torch.ones(q.shape[1], dtype=torch.bool)
                others[ids] = False
                kl = kl + p[-1] * (p[-1].log() - q[row, others].sum().log())
            each[place] = kl.detach()
            total = total + part.weights[row].double() * kl
    total.backward()
    assert states.grad is not None and weight.grad is not None
    return {"total": total.detach(), "each": each, "states": states.grad, "weight": weight.grad}


def ours(states: torch.Tensor, weight: torch.Tensor, taught: Taught, group: Any = None) -> dict[str, torch.Tensor]:
    states, weight = states.detach().requires_grad_(), weight.detach().requires_grad_()
    total, each = distillation_loss(states, weight, taught, group)
    (total * 0.5).backward()
    assert states.grad is not None and weight.grad is not None
    return {"total": total.detach(), "each": each, "states": states.grad * 2, "weight": weight.grad * 2}


def assert_close(found: dict[str, Any], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    for name, value in expected.items():
        error = (torch.as_tensor(found[name]).double() - value).abs().max().item()
        assert error <= tolerance * max(1.0, value.abs().max().item()), (name, error)


@settings(max_examples=40)
@given(
    n=st.integers(1, 21),
    k=st.sampled_from([1, 3, 4, 8]),
    temperature=st.sampled_from([1.0, 2.5]),
    chunk=st.sampled_from([0, 1, 3, 100]),
    scale=st.sampled_from([0.1, 1.0, 8.0]),
    seed=st.integers(0, 1000),
)
def test_values_and_gradients_match_float64(
    n: int, k: int, temperature: float, chunk: int, scale: float, seed: int
) -> None:
    states, weight, taught, _ = a_case(n, k=k, temperature=temperature, chunk=chunk, seed=seed, scale=scale)
    assert_close(ours(states, weight, taught), exact(states, weight, taught), 2e-5)
    assert_close(ours(states.double(), weight.double(), taught), exact(states, weight, taught), 1e-12)


def test_with_all_of_the_range_known_it_is_torchs_own_divergence() -> None:
    states, weight, taught, whole = a_case(12, k=30, temperature=2.0, seed=3)
    logits = states.double() @ weight.double().t()
    for part in taught.ranges:
        log_q = (logits[part.places, part.start : part.stop] / 2.0).log_softmax(1)
        wanted = torch.nn.functional.kl_div(log_q, whole[part.places, part.start : part.stop], reduction="none").sum(1)
        found = distillation_loss(states, weight, taught)[1][part.places]
        assert torch.allclose(found.double(), wanted, atol=1e-5)


@pytest.mark.parametrize("k", [1, 2, 5, 12])
def test_the_tail_as_one_outcome_is_never_above_the_whole_divergence(k: int) -> None:
    states, weight, taught, _ = a_case(30, k=k, seed=4)
    states, weight, all_known, _ = a_case(30, k=30, seed=4)
    some, whole = (distillation_loss(states, weight, told)[1] for told in (taught, all_known))
    assert bool((some <= whole + 1e-5).all()) and bool((some >= -1e-6).all()) and some.sum() > 0


def test_a_student_that_says_what_its_teacher_says_has_nothing_to_learn() -> None:
    """Where the teacher is the student itself: no divergence and no slope, whatever is in the tail."""
    states, weight, taught, _ = a_case(20, k=3, temperature=1.5, seed=5)
    parts = []
    for part in taught.ranges:
        q = (states[part.places] @ weight[part.start : part.stop].t() / 1.5).softmax(1)
        chances, ids = q.topk(3)
        rest = (1 - chances.sum(1, keepdim=True)).clamp(min=0)
        parts.append(
            TaughtRange(
                part.start, part.stop, part.places, part.weights, ids + part.start, torch.cat([chances, rest], 1)
            )
        )
    found = ours(states, weight, Taught(tuple(parts), 1.5))
    assert all(value.abs().max() < 1e-5 for value in found.values())


def test_rows_outside_the_range_that_is_due_learn_nothing() -> None:
    states, weight, taught, _ = a_case(9, k=3, seed=6)
    only = Taught(taught.ranges[1:2])
    found = ours(states, weight, only)["weight"]
    start, stop = RANGES[1]
    assert found[start:stop].abs().max() > 0 and not found[:start].any() and not found[stop:].any()


def on_two_ranks(chunk: int) -> dict[str, np.ndarray]:
    from configs.schema import ParallelConfig
    from train.engines import process_groups
    from train.models.heads.language import language_losses
    from train.models.heads.terms import Targets

    process_groups.join(ParallelConfig(tensor=2))
    rank, group = torch.distributed.get_rank(), torch.distributed.group.WORLD
    states, weight, taught, _ = a_case(24, k=3, temperature=1.5, chunk=chunk, seed=7)
    mine, rows = states[:, None].clone().requires_grad_(), weight.chunk(2)[rank].clone().requires_grad_()
    targets = Targets(torch.zeros(1, 24, dtype=torch.long), torch.zeros(1, 24), taught=taught)
    losses = language_losses(mine, rows, targets, group, sequence_parallel=False)
    losses["total"].backward()
    assert mine.grad is not None and rows.grad is not None
    process_groups.leave()
    found = {"total": losses["total"].detach(), "each": losses["places"]["kl"][0]}
    return {k: v.numpy() for k, v in {**found, "states": mine.grad[:, 0], "weight": rows.grad}.items()}


def test_two_tensor_parallel_ranks_match_float64() -> None:
    """A codebook that lies wholly on the second rank among them."""
    answers = run_ranks(on_two_ranks, 2, 5)
    states, weight, taught, _ = a_case(24, k=3, temperature=1.5, seed=7)
    expected = exact(states, weight, taught)
    for rank, answer in enumerate(answers):
        assert_close(answer, {**expected, "weight": expected["weight"].chunk(2)[rank]}, 1e-5)
