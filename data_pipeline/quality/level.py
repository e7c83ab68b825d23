"""How loud an utterance is: its root mean square, and its loudness as ITU-R BS.1770-4 defines it."""

from __future__ import annotations

import math

import numpy as np

from configs.checks.quality import MEASURES
from data_pipeline.audio import SAMPLE_RATE, level_db
from data_pipeline.utterance import Utterance

_BLOCK, _STEP = 0.4, 0.1  # seconds of a gating block, and between two
_SILENCE = -70.0  # LUFS, the absolute gate
_RELATIVE = -10.0  # LU below the mean of what passes the absolute gate
_OFFSET = -0.691  # of the definition

# The two filters of the K weighting, as analogue ones: frequency in Hz, quality, gain in dB. The recommendation
# tabulates their coefficients at 48 kHz only.
_SHELF = (1681.974450955533, 0.7071752369554196, 3.999843853973347)
_HIGH_PASS = (38.13547087602444, 0.5003270373238773)


class Level:
    """`level_db` and `loudness_lufs`; neither of silence. A sound shorter than 0.4 s is one block."""

    columns: tuple[str, ...] = MEASURES["level"]

    def measure(self, wave: np.ndarray, utterance: Utterance) -> dict[str, float]:
        """See `Measure.measure`."""
        if not len(wave) or not wave.any():
            return {}
        loudness = loudness_lufs(wave)
        return {"level_db": level_db(wave)} | ({} if loudness is None else {"loudness_lufs": loudness})

    def identity(self) -> str:
        """See `Measure.identity`."""
        return "rms; BS.1770-4"


def k_weighting(rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (b, a), float64 [3] each, of the shelf and the high pass at `rate`: two arrays [2, 3]."""
    frequency, quality, gain = _SHELF
    k = math.tan(math.pi * frequency / rate)
    high = 10 ** (gain / 20)
    middle = high**0.4996667741545416
    shelf_b = [high + middle * k / quality + k * k, 2 * (k * k - high), high - middle * k / quality + k * k]
    shelf_a = [1 + k / quality + k * k, 2 * (k * k - 1), 1 - k / quality + k * k]
    frequency, quality = _HIGH_PASS
    k = math.tan(math.pi * frequency / rate)
    whole = 1 + k / quality + k * k
    pass_a = [1.0, 2 * (k * k - 1) / whole, (1 - k / quality + k * k) / whole]
    numerators = np.array([np.array(shelf_b) / shelf_a[0], [1.0, -2.0, 1.0]])
    return numerators, np.array([np.array(shelf_a) / shelf_a[0], pass_a])


def loudness_lufs(wave: np.ndarray, rate: int = SAMPLE_RATE) -> float | None:
    """Integrated loudness of one channel, float [samples]; None where no block is above -70 LUFS."""
    from scipy.signal import lfilter

    weighted = np.asarray(wave, np.float64)
    for b, a in zip(*k_weighting(rate), strict=True):
        weighted = lfilter(b, a, weighted)
    block, step = round(_BLOCK * rate), round(_STEP * rate)
    sums = np.concatenate([[0.0], np.cumsum(np.square(weighted))])
    starts = np.arange(0, max(len(weighted) - block, 0) + 1, step)
    ends = np.minimum(starts + block, len(weighted))
    powers = (sums[ends] - sums[starts]) / (ends - starts)
    loud = powers[_in_lufs(powers) > _SILENCE]
    if not len(loud):
        return None
    loud = loud[_in_lufs(loud) > _in_lufs(loud.mean()) + _RELATIVE]
    return float(_in_lufs(loud.mean()))


def _in_lufs(power: np.ndarray) -> np.ndarray:
    return _OFFSET + 10 * np.log10(np.maximum(power, 1e-30))
