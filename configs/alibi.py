"""What sqrt-ALiBi (`Positions.sqrt_alibi`) means for every head."""

from __future__ import annotations

import math


def alibi_slopes(heads: int) -> tuple[float, ...]:
    """ALiBi's slope of every head (Press et al., 2108.12409, and its published code for other counts than powers of 2).

    Of the n heads up to the largest power of two, head i (from 1) has 2^(-8 i / n). Heads beyond it have the slopes
    that 2 n heads would have at odd places: 2^(-4 / n), 2^(-12 / n), and so on.
    """
    whole = 2 ** int(math.log2(heads))
    series = [2.0 ** (-8 * place / whole) for place in range(1, whole + 1)]
    between = [2.0 ** (-4 * place / whole) for place in range(1, 2 * (heads - whole), 2)]
    return (*series, *between)
