"""Log-mel spectrograms as HiFi-GAN takes them (Kong et al. 2020, 2010.05646, section 4.1 and its code)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch.nn import functional

from configs.schema import MelConfig
from data_pipeline.quality.mel import mel_filters

_TINY = 1e-9  # of the power, beside which a root has a gradient


class Mel:
    """Mel frames of waves at `config.rate`. Its constants are fp32 whatever a model's parameters are."""

    def __init__(self, config: MelConfig) -> None:
        self.config = config
        filters = mel_filters(config.window, config.bands, config.rate, config.lowest, config.highest)
        self._filters = torch.from_numpy(np.ascontiguousarray(filters.T))

    @property
    def filters(self) -> torch.Tensor:
        """float32 [bands, window // 2 + 1]"""
        return self._filters

    def frames(self, samples: torch.Tensor) -> torch.Tensor:
        """How many frames so many samples have."""
        return samples // self.config.hop

    def magnitude(self, waves: torch.Tensor) -> torch.Tensor:
        """float32 [B, bands, samples // hop], of float32 [B, samples] of more than half a window."""
        config = self.config
        edge = (config.window - config.hop) // 2
        whole = waves.shape[1] // config.hop * config.hop
        padded = functional.pad(waves[:, None, :whole].float(), (edge, edge), mode="reflect")[:, 0]
        window = hann(config.window, waves.device)
        spectrum = torch.stft(padded, config.window, config.hop, window=window, center=False, return_complex=True)
        power = torch.view_as_real(spectrum).square().sum(-1)
        if self._filters.device != power.device:
            self._filters = self._filters.to(power.device)
        return self._filters @ (power + _TINY).sqrt()

    def logarithm(self, waves: torch.Tensor) -> torch.Tensor:
        """log of the magnitude, at least log(floor); shapes as of `magnitude`."""
        return self.magnitude(waves).clamp(min=self.config.floor).log()

    def __call__(self, waves: torch.Tensor) -> torch.Tensor:
        """What models see: (log mel - mean) / deviation."""
        return (self.logarithm(waves) - self.config.mean) / self.config.deviation

    def undo(self, mel: torch.Tensor) -> torch.Tensor:
        """The magnitude that calling it made `mel` of."""
        return (mel.float() * self.config.deviation + self.config.mean).exp()


@lru_cache(16)
def hann(size: int, device: torch.device) -> torch.Tensor:
    """A periodic Hann window, float32 [size]."""
    return torch.hann_window(size, device=device)
