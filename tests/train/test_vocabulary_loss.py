"""The chunked vocabulary-parallel loss against float64 autograd of torch's own cross entropy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from tests.ranks import run_ranks
from train.models.heads.terms import Targets
from train.models.heads.vocabulary_loss import place_losses, vocabulary_loss

Case = tuple[torch.Tensor, torch.Tensor, Targets]


def a_case(n: int, hidden: int, rows: int, seed: int, share: float = 0.6, **options: Any) -> Case:
    """States, head and targets; about `share` of the places have a loss, and a few of those weigh nothing."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(n, hidden, generator=generator)
    weight = torch.randn(rows, hidden, generator=generator)
    wanted = torch.rand(n, generator=generator) < share
    weights = torch.rand(n, generator=generator) * wanted * (torch.rand(n, generator=generator) < 0.9)
    labels = torch.where(wanted, torch.randint(rows, (n,), generator=generator), -1)
    places = None if wanted.all() else wanted.nonzero()[:, 0]
    return states, weight, Targets(labels[None], weights[None], places, **options)


def exact(states: torch.Tensor, weight: torch.Tensor, targets: Targets) -> dict[str, torch.Tensor]:
    """All of it by autograd in float64, with all logits at once."""
    states, weight = (tensor.detach().double().requires_grad_() for tensor in (states, weight))
    logits = states @ weight.t()
    labels, asked = targets.labels[0], torch.zeros(len(states), dtype=torch.bool)
    asked[slice(None) if targets.places is None else targets.places] = True
    safe = labels.clamp(min=0)
    plain = F.cross_entropy(logits, safe, reduction="none")
    smoothed = F.cross_entropy(logits, safe, reduction="none", label_smoothing=targets.smoothing)
    z = logits.logsumexp(1).square()
    total = ((smoothed + targets.z * z) * targets.weights[0].double() * asked).sum()
    total.backward()
    assert states.grad is not None and weight.grad is not None
    values = {"cross_entropy": (plain * asked).detach(), "z": (z * asked).detach(), "total": total.detach()}
    return {**values, "states": states.grad, "weight": weight.grad}


def ours(states: torch.Tensor, weight: torch.Tensor, targets: Targets, scale: float = 1.0) -> dict[str, Any]:
    states, weight = states.detach().requires_grad_(), weight.detach().requires_grad_()
    total, cross_entropy, z = vocabulary_loss(states, weight, targets)
    (total * scale).backward()
    return {
        "cross_entropy": cross_entropy,
        "z": z,
        "total": total.detach(),
        "states": states.grad / scale if states.grad is not None else None,
        "weight": weight.grad / scale if weight.grad is not None else None,
    }


def assert_close(found: dict[str, Any], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    for name, value in expected.items():
        error = (found[name].double() - value).abs().max().item() if value.numel() else 0.0
        assert error <= tolerance * max(1.0, value.abs().max().item() if value.numel() else 0.0), (name, error)


cases = st.builds(
    a_case,
    n=st.integers(1, 23),
    hidden=st.integers(1, 9),
    rows=st.integers(2, 40),
    seed=st.integers(0, 1000),
    share=st.sampled_from([0.0, 0.5, 1.0]),
    smoothing=st.sampled_from([0.0, 0.1]),
    z=st.sampled_from([0.0, 1e-2]),
    chunk=st.sampled_from([0, 1, 4, 7, 100]),
)


@settings(max_examples=100)
@given(case=cases, scale=st.sampled_from([1.0, 0.01]))
def test_values_and_gradients_match_float64(case: Case, scale: float) -> None:
    assert_close(ours(*case, scale=scale), exact(*case), 2e-5)


@settings(max_examples=50)
@given(case=cases, seed=st.integers(0, 1000))
def test_places_differentiated_apart_take_any_gradient(case: Case, seed: int) -> None:
    """As the sum whose weights are the gradients that come down, without smoothing and z."""
    states, weight, targets = case
    scales = torch.randn(len(states), generator=torch.Generator().manual_seed(seed))
    plain = replace(targets, weights=scales[None], smoothing=0.0, z=0.0)
    states, weight = states.detach().requires_grad_(), weight.detach().requires_grad_()
    losses = place_losses(states, weight, targets)
    (losses * scales).sum().backward()
    found = {"cross_entropy": losses.detach(), "states": states.grad, "weight": weight.grad}
    expected = exact(states, weight, plain)
    assert_close(found, {name: expected[name] for name in found}, 2e-5)


def test_in_float64_they_are_the_same_numbers() -> None:
    states, weight, targets = a_case(29, 8, 50, seed=1, smoothing=0.1, z=1e-2, chunk=8)
    assert_close(ours(states.double(), weight.double(), targets), exact(states, weight, targets), 1e-12)


def test_large_logits_neither_overflow_nor_lose_the_small_ones() -> None:
    states, weight, targets = a_case(12, 8, 50, seed=2, z=1e-4, chunk=5)
    assert_close(ours(states * 60, weight, targets), exact(states * 60, weight, targets), 1e-5)


def test_bf16_is_added_up_in_fp32() -> None:
    """bf16 inputs round products at 2^-8; sums over many chunks must not add to that."""
    states, weight, targets = a_case(400, 16, 64, seed=3, smoothing=0.1, z=1e-3, chunk=4)
    states, weight = states.bfloat16(), weight.bfloat16()
    found = ours(states, weight, targets)
    assert found["total"].dtype == torch.float32 and found["weight"].dtype == torch.bfloat16
    assert_close(found, exact(states, weight, targets), 2e-2)
    once = ours(states, weight, replace(targets, chunk=0))
    assert_close({"weight": found["weight"]}, {"weight": once["weight"].double()}, 2**-7)


@pytest.mark.parametrize(("states_learn", "head_learns"), [(True, False), (False, True), (False, False)])
def test_what_is_frozen_gets_no_gradient_and_costs_no_product(states_learn: bool, head_learns: bool) -> None:
    states, weight, targets = a_case(20, 8, 50, seed=4, smoothing=0.1, chunk=8)
    expected = exact(states, weight, targets)
    states.requires_grad_(states_learn)
    weight.requires_grad_(head_learns)
    with Watch() as watch:
        total, *_ = vocabulary_loss(states, weight, targets)
    products = 1 + states_learn + head_learns
    assert watch.products == products * 2  # twelve places of 20 in chunks of 8
    if states_learn or head_learns:
        total.backward()
    for tensor, learns, name in ((states, states_learn, "states"), (weight, head_learns, "weight")):
        assert (tensor.grad is not None) == learns
        if tensor.grad is not None:
            assert torch.allclose(tensor.grad.double(), expected[name], atol=1e-5)


def test_without_learning_only_the_values_are_made() -> None:
    states, weight, targets = a_case(20, 8, 50, seed=4, chunk=8)
    states.requires_grad_()
    with torch.no_grad(), Watch() as watch:
        total, *_ = vocabulary_loss(states, weight, targets)
    assert watch.products == 2 and not total.requires_grad


def test_no_tensor_is_as_large_as_the_logits() -> None:
    states, weight, targets = a_case(256, 4, 512, seed=5, share=1.0, smoothing=0.1, z=1e-3, chunk=16)
    states.requires_grad_()
    weight.requires_grad_()
    with Watch() as watch:
        vocabulary_loss(states, weight, targets)[0].backward()
    assert watch.largest == 16 * 512
    with Watch() as watch:
        vocabulary_loss(states, weight, replace(targets, chunk=0))
    assert watch.largest == 256 * 512


def test_gradients_are_handed_out_once() -> None:
    states, weight, targets = a_case(5, 4, 10, seed=6, share=1.0)
    total, *_ = vocabulary_loss(states.requires_grad_(), weight, targets)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated before"):
        total.backward()


class Watch(TorchDispatchMode):
    """Counts matrix products, and notes the largest result, in elements, of any operation."""

    def __init__(self) -> None:
        super().__init__()
        self.products, self.largest = 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_):
            self.products += 1
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if torch.is_tensor(tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


# --- real tensor-parallel ranks ---------------------------------------------------------------------------------


def head_on_two_ranks(sequence_parallel: bool, chunk: int) -> dict[str, np.ndarray]:
    """Losses and gradients of this rank's part of the states and rows of the head."""
    from configs.schema import ParallelConfig
    from train.engines import process_groups
    from train.models.heads.language import language_losses

    process_groups.join(ParallelConfig(tensor=2))
    rank, group = torch.distributed.get_rank(), torch.distributed.group.WORLD
    states, weight, targets = a_case(24, 8, 50, seed=7, smoothing=0.1, z=1e-2, chunk=chunk)
    mine = states[:, None].chunk(2)[rank] if sequence_parallel else states[:, None]
    mine, rows = mine.clone().requires_grad_(), weight.chunk(2)[rank].clone().requires_grad_()
    losses = language_losses(mine, rows, targets, group, sequence_parallel)
    (losses["total"] * 0.5).backward()
    assert mine.grad is not None and rows.grad is not None
    process_groups.leave()
    values = {**{name: value[0] for name, value in losses["places"].items()}, "total": losses["total"].detach()}
    values = {**values, "states": mine.grad[:, 0] * 2, "weight": rows.grad * 2}
    return {name: value.numpy() for name, value in values.items()}  # tensors would stay in the memory of the rank


@pytest.mark.parametrize(("sequence_parallel", "chunk"), [(False, 0), (False, 5), (True, 5)])
def test_two_tensor_parallel_ranks_match_float64(sequence_parallel: bool, chunk: int) -> None:
    answers = run_ranks(head_on_two_ranks, 2, sequence_parallel, chunk)
    expected = exact(*a_case(24, 8, 50, seed=7, smoothing=0.1, z=1e-2))
    for rank, answer in enumerate(answers):
        found = {name: torch.as_tensor(value) for name, value in answer.items()}
        parts = {**expected, "weight": expected["weight"].chunk(2)[rank]}
        if sequence_parallel:
            parts["states"] = expected["states"].chunk(2)[rank]
        assert_close(found, parts, 1e-5)
