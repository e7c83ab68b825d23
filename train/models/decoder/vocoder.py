"""Mel to wave: ConvNeXt blocks at the rate of frames, and an inverse Fourier transform (Vocos, Siuzdak 2023,
2306.00814)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from configs.schema import DecoderConfig
from train.models.decoder.griffin_lim import inverse_stft
from train.models.decoder.layers import FrameNorm
from train.models.decoder.mel import hann

KERNEL = 7  # frames of every convolution
_LOUDEST = 100.0  # magnitude of a bin


class ConvNeXt(nn.Module):
    """A convolution channel by channel, and an MLP at each frame."""

    def __init__(self, width: int, ffn: int, scale: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, KERNEL, padding=KERNEL // 2, groups=width)
        self.norm = FrameNorm(width)
        self.up = nn.Conv1d(width, ffn, 1)
        self.down = nn.Conv1d(ffn, width, 1)
        self.scale = nn.Parameter(torch.full((width, 1), scale))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.scale * self.down(functional.gelu(self.up(self.norm(self.depthwise(x)))))


class Vocoder(nn.Module):
    """Magnitudes and phases of a Fourier transform for every mel frame, and the wave that they add up to."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        sizes, mel = config.vocoder, config.mel
        self.window, self.hop = mel.window, mel.hop
        self.first = nn.Conv1d(mel.bands, sizes.width, KERNEL, padding=KERNEL // 2)
        self.first_norm = FrameNorm(sizes.width)
        self.blocks = nn.ModuleList(ConvNeXt(sizes.width, sizes.ffn, 1 / sizes.layers) for _ in range(sizes.layers))
        self.last_norm = FrameNorm(sizes.width)
        self.spectrum = nn.Conv1d(sizes.width, mel.window + 2, 1)

    @property
    def reach(self) -> int:
        """Frames before and after a moment that decide how it sounds."""
        return (len(self.blocks) + 1) * (KERNEL // 2) + self.window // self.hop

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        """float32 [B, frames x hop], of mels as models see them, [B, bands, frames]."""
        x = self.first_norm(self.first(mel.to(self.first.weight.dtype)))
        for block in self.blocks:
            x = block(x)
        magnitude, phase = self.spectrum(self.last_norm(x)).float().chunk(2, dim=1)
        spectrum = torch.polar(magnitude.exp().clamp(max=_LOUDEST), phase)
        return inverse_stft(spectrum, hann(self.window, spectrum.device), self.hop)
