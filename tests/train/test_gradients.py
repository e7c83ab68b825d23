"""Gradients that go into the engine's buffer at once, against those that autograd adds up, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import layers

from train.models.gradients import _Lookup, accumulate_in_linear_layers, buffer_of, stand_in
from train.models.heads.terms import Targets
from train.models.heads.vocabulary_loss import vocabulary_loss

ROWS, WIDTH, PLACES = 13, 6, 20


def weight_with_a_buffer(values: torch.Tensor) -> torch.nn.Parameter:
    """As Megatron-Core's data-parallel wrapper prepares a parameter; something is in the buffer already."""
    weight = torch.nn.Parameter(values.clone())
    weight.main_grad = torch.ones_like(values)  # type: ignore[attr-defined]
    weight.grad_added_to_main_grad = False  # type: ignore[attr-defined]
    return weight


def drawn() -> tuple[torch.Tensor, torch.Tensor, Targets]:
    """The values of a weight, ids that come more than once, and what is asked of a head."""
    random = torch.Generator().manual_seed(0)
    values = torch.randn(ROWS, WIDTH, generator=random, dtype=torch.float64)
    ids, labels = (torch.randint(0, ROWS, (1, PLACES), generator=random) for _ in range(2))
    weights = torch.rand(1, PLACES, generator=random)
    return values, ids, Targets(labels, weights, chunk=7)


def reference(values: torch.Tensor, ids: torch.Tensor, targets: Targets, *, tied: bool) -> torch.Tensor:
    """The gradient of the head, which `tied` is the embedding too, of three times the loss."""
    weight = values.clone().requires_grad_()
    states = F.embedding(ids, weight if tied else values)[0].tanh()
    losses = F.cross_entropy(states @ weight.t(), targets.labels[0], reduction="none")
    (gradient,) = torch.autograd.grad(3 * (losses * targets.weights[0]).sum(), weight)
    return gradient


@pytest.mark.parametrize("tied", [True, False])
def test_head_and_embedding_over_two_micro_batches(tied: bool) -> None:
    values, ids, targets = drawn()
    weight = weight_with_a_buffer(values)
    for _ in range(2):
        looked_up = _Lookup.apply(ids, weight) if tied else values[ids].requires_grad_()
        total, *_ = vocabulary_loss(looked_up[0].tanh(), weight, targets, used_again=tied)
        (3 * total).backward()
        assert weight.grad is not None and weight.grad_added_to_main_grad, "a hook waits for it"  # type: ignore[attr-defined]
        weight.grad = None
    expected = 1 + 2 * reference(values, ids, targets, tied=tied)
    torch.testing.assert_close(buffer_of(weight), expected, rtol=1e-6, atol=1e-7)  # weights of places are fp32


def test_without_a_buffer_autograd_has_the_gradients() -> None:
    values, ids, targets = drawn()
    weight = torch.nn.Parameter(values.clone())
    assert buffer_of(weight) is None
    total, *_ = vocabulary_loss(F.embedding(ids, weight)[0].tanh(), weight, targets, used_again=True)
    (3 * total).backward()
    torch.testing.assert_close(weight.grad, reference(values, ids, targets, tied=True), rtol=1e-6, atol=1e-7)


def test_a_linear_layers_product_is_added_to_its_buffer() -> None:
    accumulate_in_linear_layers()
    random = torch.Generator().manual_seed(0)
    inputs, gradient = (torch.randn(PLACES, size, generator=random) for size in (WIDTH, ROWS))
    buffer = torch.ones(ROWS, WIDTH)
    layers.fused_weight_gradient_mlp_cuda.wgrad_gemm_accum_fp32(inputs, gradient, buffer)
    torch.testing.assert_close(buffer.double(), 1 + gradient.double().t() @ inputs.double(), rtol=1e-5, atol=1e-5)
    halves = torch.ones(ROWS, WIDTH)
    layers.fused_weight_gradient_mlp_cuda.wgrad_gemm_accum_fp32(inputs.bfloat16(), gradient.bfloat16(), halves)
    torch.testing.assert_close(halves, buffer, rtol=0.05, atol=0.1)


def test_a_stand_in_has_the_weights_form() -> None:
    weight = weight_with_a_buffer(torch.zeros(3, 2))
    assert (stand_in(weight).shape, stand_in(weight).dtype) == (weight.shape, weight.dtype)
