"""RMSNorm against its formula in float64, values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from train.models.norm import rms_norm

SHAPES = [(7, 3, 8), (2, 16), (1, 1, 4)]


def plain(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def ours(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return rms_norm(x, weight, 1e-5)


def drawn(shape: tuple[int, ...]) -> list[torch.Tensor]:
    """x, weight, and the gradient of the result."""
    random = torch.Generator().manual_seed(0)
    return [torch.randn(size, generator=random, dtype=torch.float64) for size in (shape, shape[-1:], shape)]


def all_of(function, x: torch.Tensor, weight: torch.Tensor, given: torch.Tensor) -> list[torch.Tensor]:  # type: ignore[no-untyped-def]
    leaves = [tensor.clone().requires_grad_() for tensor in (x, weight)]
    result = function(*leaves)
    return [result.detach(), *torch.autograd.grad(result, leaves, given)]


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_in_float64(shape: tuple[int, ...]) -> None:
    for mine, expected in zip(all_of(ours, *drawn(shape)), all_of(plain, *drawn(shape)), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_no_more_is_lost_than_a_dtype_loses(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    rounded = [tensor.to(dtype) for tensor in drawn(shape)]
    bound = 4 * torch.finfo(dtype).eps
    expected = all_of(plain, *(tensor.double() for tensor in rounded))
    for mine, exact in zip(all_of(ours, *rounded), expected, strict=True):
        assert mine.dtype is dtype
        torch.testing.assert_close(mine.double(), exact, rtol=bound, atol=4 * bound)


def test_views_and_frozen_weights() -> None:
    """Heads come as views of a wider tensor, and a frozen norm has no gradient of its weight."""
    wide = torch.randn(5, 4, 12, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, dtype=torch.float64)
    gradients = [
        torch.autograd.grad(function(wide[:, 1:3, 3:9]).square().sum(), wide)[0]
        for function in (lambda x: ours(x, weight), lambda x: F.rms_norm(x, (6,), weight, 1e-5))
    ]
    torch.testing.assert_close(*gradients)
    assert weight.grad is None


def test_with_nothing_but_the_weight_to_learn() -> None:
    x, weight, given = drawn((5, 8))
    weight.requires_grad_()
    (gradient,) = torch.autograd.grad(ours(x, weight), weight, given)
    torch.testing.assert_close(gradient, torch.autograd.grad(plain(x, weight), weight, given)[0])
