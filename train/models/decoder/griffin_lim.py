"""Mel to wave without anything learnt: the vocoder to fall back on, and the floor that a trained one has to beat."""

from __future__ import annotations

import torch

from train.models.decoder.mel import Mel, hann

ITERATIONS = 32
_MOMENTUM = 0.99  # of the fast algorithm (Perraudin et al. 2013)


class GriffinLim:
    """Phases found by going back and forth between spectrum and wave (Griffin and Lim 1984)."""

    def __init__(self, mel: Mel, iterations: int = ITERATIONS) -> None:
        self.mel = mel
        self._iterations = iterations
        self._inverse = torch.linalg.pinv(mel.filters.cpu().double()).float()

    @torch.no_grad()
    def __call__(self, mel: torch.Tensor) -> torch.Tensor:
        """float32 [B, frames x hop], of mels as models see them, float32 [B, bands, frames]."""
        config = self.mel.config
        window = hann(config.window, mel.device)
        magnitude = (self._inverse.to(mel.device) @ self.mel.undo(mel)).clamp(min=config.floor)
        generator = torch.Generator().manual_seed(0)  # the same sound each time
        angles = torch.rand(magnitude.shape, generator=generator).to(magnitude.device) * (2 * torch.pi)
        phase = torch.polar(torch.ones_like(magnitude), angles)
        before = torch.zeros_like(phase)
        for _ in range(self._iterations):
            wave = inverse_stft(magnitude * phase, window, config.hop)
            again = self._stft(wave, window)
            phase = again - before * (_MOMENTUM / (1 + _MOMENTUM))
            phase = phase / phase.abs().clamp(min=1e-16)
            before = again
        return inverse_stft(magnitude * phase, window, config.hop)

    def _stft(self, wave: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
        config = self.mel.config
        edge = (config.window - config.hop) // 2
        padded = torch.nn.functional.pad(wave, (edge, edge))
        return torch.stft(padded, config.window, config.hop, window=window, center=False, return_complex=True)


def inverse_stft(spectrum: torch.Tensor, window: torch.Tensor, hop: int) -> torch.Tensor:
    """float32 [B, frames x hop], of complex [B, window // 2 + 1, frames]: frame j is centred on sample (j + 1/2) hop.

    torch.istft has frames on multiples of hop only (Vocos has its own inverse for the same reason). Overlapped windows
    are divided by what they add up to.
    """
    size, frames = len(window), spectrum.shape[2]
    pieces = torch.fft.irfft(spectrum, n=size, dim=1) * window[:, None]
    length = (frames - 1) * hop + size
    squares = window.square()[None, :, None].expand(1, size, frames)
    wave, weight = (
        torch.nn.functional.fold(part, (1, length), (1, size), stride=(1, hop))[:, 0, 0] for part in (pieces, squares)
    )
    edge = (size - hop) // 2
    inside = slice(edge, edge + frames * hop)
    return wave[:, inside] / weight[:, inside].clamp(min=1e-8)
