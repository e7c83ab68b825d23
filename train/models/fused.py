"""Plain functions of tensors that a GPU computes in one or two kernels instead of one an operation."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar, cast

import torch

F = TypeVar("F", bound=Callable[..., Any])


def fused(function: F) -> F:
    """`function`, compiled where its first argument is on a GPU. On a CPU it runs as it is written: there the compiler
    takes longer than a short run, and numbers stay what they were. TORCH_COMPILE_DISABLE=1 has a GPU do so too."""

    @wraps(function)
    def call(first: torch.Tensor, *others: Any) -> Any:
        return (_compiled(function) if first.is_cuda else function)(first, *others)

    return cast(F, call)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function)
