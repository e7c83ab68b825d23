"""Short keys of sounds and texts: two that are alike share a key, two that are not hardly ever do."""

from __future__ import annotations

import unicodedata

import numpy as np

_SAMPLED = 4  # one in so many different words of a fingerprint becomes a key, chosen by the word itself
PERMUTATIONS = 64  # of a MinHash signature
_ROWS = 4  # of a band of it
_SHINGLE = 5  # characters
ALIKE = 0.8  # share of equal signature entries, which estimates the share of shingles that two texts have in common


def mixed(values: np.ndarray) -> np.ndarray:
    """uint64 hashes of uint64 values (the finaliser of splitmix64): a permutation of them."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


_SEEDS = mixed(np.arange(1, PERMUTATIONS + 1, dtype=np.uint64))


def sound_keys(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keys of a fingerprint, uint64 [keys], and the frames they are first seen at, int64 [keys]."""
    different, frames = np.unique(words, return_index=True)
    hashed = mixed(different.astype(np.uint64))
    chosen = (different != 0) & (hashed % np.uint64(_SAMPLED) == 0)
    return hashed[chosen], frames[chosen]


def normalised(text: str) -> str:
    """Letters and digits of `text` in lower case, with one space where anything else stood."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(c if c.isalnum() else " " for c in folded).split())


def signature(text: str) -> np.ndarray:
    """MinHash over the different runs of five characters of a normalised text that is not empty: uint64 [64]."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.uint64)
    width = min(_SHINGLE, len(points))
    runs = np.lib.stride_tricks.sliding_window_view(points, width)
    hashed = np.zeros(len(runs), np.uint64)
    for column in range(width):
        hashed = mixed(hashed * np.uint64(31) + runs[:, column] + np.uint64(1))
    return mixed(np.unique(hashed)[:, None] ^ _SEEDS).min(0)


def band_keys(signed: np.ndarray) -> np.ndarray:
    """Keys of a signature, uint64 [16]: one for every four entries."""
    bands = signed.reshape(-1, _ROWS)
    keys = np.arange(len(bands), dtype=np.uint64)
    for row in range(_ROWS):
        keys = mixed(keys * np.uint64(31) + bands[:, row])
    return keys
