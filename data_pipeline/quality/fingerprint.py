"""Fingerprints that a sound keeps through another level, codec or start, and another sound does not share.

Haitsma and Kalker, "A Highly Robust Audio Fingerprinting System" (ISMIR 2002): frames of 0.37 s, one every 11.6 ms,
each a word of 32 bits: whether the step in energy from one of 33 bands (300 to 2000 Hz) to the next grew since the
frame before.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from data_pipeline.audio import SAMPLE_RATE

_WINDOW, _HOP = 5920, 185  # samples
_BANDS, _LOWEST, _HIGHEST = 33, 300.0, 2000.0  # Hz
_QUIET = 1e-4  # of the loudest frame's power: bits of such a frame are those of a codec's noise
_BLOCK = 512  # frames transformed at once
SHORTEST = 32  # words that are compared at least, about 0.4 s of loud sound
SAME = 0.25  # share of differing bits up to which two are the same sound; the paper's threshold is 0.35
_COVERED = 0.8  # of the longer one, that the shorter one has to cover


def fingerprint(wave: np.ndarray) -> np.ndarray:
    """uint32 [frames], of float32 [samples] at 16 kHz: 0 where it is quiet, empty of a sound shorter than 0.4 s."""
    count = (len(wave) - _WINDOW) // _HOP + 1
    if count < 2:
        return np.zeros(0, np.uint32)
    frames = np.lib.stride_tricks.sliding_window_view(np.asarray(wave, np.float32), _WINDOW)[::_HOP]
    filters, hann = _filters(), np.hanning(_WINDOW).astype(np.float32)
    energy = np.concatenate(
        [_power(frames[first : first + _BLOCK] * hann) @ filters for first in range(0, count, _BLOCK)]
    )
    step = np.diff(energy, axis=1)
    bits = np.diff(step, axis=0) > 0
    words = (bits.astype(np.uint32) << np.arange(_BANDS - 1, dtype=np.uint32)).sum(1, dtype=np.uint32)
    whole = energy.sum(1)[1:]
    words[whole <= max(float(whole.max()) * _QUIET, 1e-12)] = 0
    return words


def _power(frames: np.ndarray) -> np.ndarray:
    from scipy.fft import rfft

    return np.square(np.abs(rfft(frames, axis=1)))


@lru_cache(1)
def _filters() -> np.ndarray:
    """float32 [frequencies, bands]: which band a frequency belongs to."""
    frequencies = np.fft.rfftfreq(_WINDOW, 1 / SAMPLE_RATE)
    edges = np.geomspace(_LOWEST, _HIGHEST, _BANDS + 1)
    return ((frequencies[:, None] >= edges[:-1]) & (frequencies[:, None] < edges[1:])).astype(np.float32)


def bit_error_rate(one: np.ndarray, other: np.ndarray, offset: int) -> float:
    """Share of differing bits where frame i of `one` meets frame i + `offset` of `other` and both are loud; 1 where
    fewer than `SHORTEST` frames do, or they cover too little of the longer one's loud frames."""
    begin, end = max(0, -offset), min(len(one), len(other) - offset)
    if end <= begin:
        return 1.0
    left, right = one[begin:end], other[begin + offset : end + offset]
    both = (left != 0) & (right != 0)
    loud = int(both.sum())
    if loud < SHORTEST or loud < _COVERED * max(np.count_nonzero(one), np.count_nonzero(other)):
        return 1.0
    return float(np.bitwise_count(left[both] ^ right[both]).sum() / (32 * loud))
