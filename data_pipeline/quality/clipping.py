"""How much of an utterance was cut off at the loudest value that its recording could hold."""

from __future__ import annotations

import numpy as np

from configs.checks.quality import MEASURES
from data_pipeline.utterance import Utterance

_RUN = 3  # samples in a row; fewer than that at the peak are what any sound has
_NEAR = 0.98  # of the peak
_FLAT = 1e-4  # of the peak: neighbours that differ by less are flat


class Clipping:
    """`clipped_share`: samples that lie in runs of at least three alike, within 2% of the loudest sample, over all.

    The loudest value need not be full scale: a recording that was clipped and made softer afterwards still has flat
    tops. One that was resampled or coded after it was clipped has none, and is not found.
    """

    columns: tuple[str, ...] = MEASURES["clipping"]

    def measure(self, wave: np.ndarray, utterance: Utterance) -> dict[str, float]:
        """See `Measure.measure`."""
        return {"clipped_share": clipped_share(wave)} if len(wave) else {}

    def identity(self) -> str:
        """See `Measure.identity`."""
        return f"runs of {_RUN} above {_NEAR} within {_FLAT}"


def clipped_share(wave: np.ndarray) -> float:
    """Of float [samples], at least one; 0 for silence."""
    peak = float(np.abs(wave).max())
    if peak == 0:
        return 0.0
    loud = np.abs(wave) >= _NEAR * peak
    same = (np.abs(np.diff(wave)) <= _FLAT * peak) & loud[1:] & loud[:-1]  # a sample and the one before it
    edges = np.flatnonzero(np.diff(same.astype(np.int8), prepend=0, append=0))
    lengths = edges[1::2] - edges[::2] + 1
    return float(lengths[lengths >= _RUN].sum() / len(wave))
