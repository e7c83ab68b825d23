"""Seeded shuffles of 0..n-1 that every machine and every later version computes alike."""

from __future__ import annotations

import numpy as np
import xxhash

_ROUNDS = 4


def seed_of(*parts: int | str) -> int:
    """A 64-bit seed of `parts`, the same on every machine."""
    return xxhash.xxh3_64_intdigest("/".join(map(str, parts)).encode())


def permuted(index: int, size: int, seed: int) -> int:
    """The number at place `index` of the permutation of 0..size-1 that `seed` names, computed by itself.

    A Feistel network permutes the smallest square power of two that holds `size`; numbers that fall outside are
    sent round again until they fall inside (cycle walking: Black and Rogaway, CT-RSA 2002), under four rounds on
    average.
    """
    if not 0 <= index < size:
        raise IndexError(f"place {index} of a permutation of {size}")
    half = max(1, -(-(size - 1).bit_length() // 2))
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(_ROUNDS):
            mixed = xxhash.xxh3_64_intdigest(right.to_bytes(8, "little"), seed=(seed + turn) & (2**64 - 1))
            left, right = right, left ^ (mixed & mask)
        index = left << half | right
        if index < size:
            return index


def shuffled(size: int, seed: int) -> np.ndarray:
    """The whole permutation of 0..size-1 that `seed` names (another than `permuted`'s): int64 [size].

    Numbers are sorted by their place in SplitMix64's sequence (Steele et al., OOPSLA 2014), and not by a generator of
    NumPy's, whose streams may change with its version.
    """
    with np.errstate(over="ignore"):
        mixed = (np.arange(1, size + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) + np.uint64(seed)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(mixed ^ (mixed >> np.uint64(31)), kind="stable")
