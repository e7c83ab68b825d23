"""NaN and infinity among weights: a model that holds any is broken, wherever it goes."""

from __future__ import annotations

import torch

from runtime.exits import BadInput


def count_nonfinite(tensor: torch.Tensor) -> int:
    """How many elements are NaN or infinite. A tensor without any is read once and nothing is allocated for it."""
    if not tensor.is_floating_point() or not tensor.numel():
        return 0
    least, most = torch.aminmax(tensor)  # NaN goes through both
    if torch.isfinite(least) and torch.isfinite(most):
        return 0
    return int((~torch.isfinite(tensor)).sum())


def check_finite(tensor: torch.Tensor, name: str, where: object, allowed: bool = False) -> int:
    """How many elements of a tensor are NaN or infinite. Raises BadInput, with its name and how many, unless they are
    `allowed`; `where` is what it is read from."""
    count = count_nonfinite(tensor)
    if count and not allowed:
        raise BadInput(
            f"{where}: {name} has {count:,} of {tensor.numel():,} values that are NaN or infinite; a model with such "
            "weights computes nothing"
        )
    return count
