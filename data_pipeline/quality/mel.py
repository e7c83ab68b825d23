"""Mel power spectra as librosa defines them, which models of quality and of voices were trained on."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from data_pipeline.audio import SAMPLE_RATE

_BREAK, _PER_MEL = 1000.0, 200.0 / 3  # Hz: Slaney's scale is linear up to the first, in steps of the second
_LOG_STEP = np.log(6.4) / 27  # a mel above it


def mel_power(wave: np.ndarray, window: int, hop: int, bands: int) -> np.ndarray:
    """float32 [1 + samples // hop or one less, bands], of float32 [samples]: power in Slaney's mel bands, area 1, from
    0 to 8 kHz. Frames of `window` samples under a periodic Hann window are centred on multiples of `hop`, with silence
    around the sound."""
    padded = np.pad(np.asarray(wave, np.float32), window // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    hann = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)).astype(np.float32)
    power = np.abs(np.fft.rfft(frames * hann, axis=1)).astype(np.float32) ** 2
    return power @ mel_filters(window, bands)


@lru_cache(8)
def mel_filters(
    window: int, bands: int, rate: int = SAMPLE_RATE, lowest: float = 0.0, highest: float = SAMPLE_RATE / 2
) -> np.ndarray:
    """float32 [window // 2 + 1, bands]: triangles over the frequencies of a transform of `window` samples at `rate` Hz,
    from `lowest` to `highest` Hz."""
    frequencies = np.fft.rfftfreq(window, 1 / rate)
    edges = _hertz(np.linspace(_mels(lowest), _mels(highest), bands + 2))
    rising = (frequencies[:, None] - edges[None, :-2]) / np.diff(edges)[:-1]
    falling = (edges[None, 2:] - frequencies[:, None]) / np.diff(edges)[1:]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return (triangles * (2.0 / (edges[2:] - edges[:-2]))).astype(np.float32)


def _mels(hertz: float) -> float:
    return hertz / _PER_MEL if hertz < _BREAK else _BREAK / _PER_MEL + float(np.log(hertz / _BREAK) / _LOG_STEP)


def _hertz(mels: np.ndarray) -> np.ndarray:
    linear = _BREAK / _PER_MEL
    return np.where(mels < linear, mels * _PER_MEL, _BREAK * np.exp(_LOG_STEP * (mels - linear)))
