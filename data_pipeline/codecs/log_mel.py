"""Whisper's log-mel spectrogram: 100 frames a second of 16 kHz sound."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

HOP = 160  # samples a frame
_WINDOW = 400  # samples of the Hann window, and of the transform
_FLOOR = 8.0  # log10 units below the loudest value of the whole sound


class LogMel:
    """`mels` bands (Slaney's scale and norm, 0 to 8000 Hz) on `device`."""

    def __init__(self, mels: int, device: str = "cpu") -> None:
        self.mels = mels
        self.device = device

    @cached_property
    def _filters(self) -> torch.Tensor:
        """float32 [mels, frequencies]."""
        import torch
        from transformers.audio_utils import mel_filter_bank

        bank = mel_filter_bank(_WINDOW // 2 + 1, self.mels, 0.0, 8000.0, 16_000, norm="slaney", mel_scale="slaney")
        return torch.from_numpy(bank.T.astype(np.float32)).to(self.device)

    @cached_property
    def _window(self) -> torch.Tensor:
        import torch

        return torch.hann_window(_WINDOW, device=self.device)

    def __call__(self, wave: np.ndarray) -> torch.Tensor:
        """float32 [mels, samples // 160] on the device, of float32 [samples] at 16 kHz, more than 200 of them."""
        import torch

        sound = torch.from_numpy(np.ascontiguousarray(wave, np.float32)).to(self.device)
        spectrum = torch.stft(sound, _WINDOW, HOP, window=self._window, return_complex=True)
        power = (spectrum[:, :-1].abs() ** 2).contiguous()
        logarithm = (self._filters @ power).clamp(min=1e-10).log10()
        return (torch.maximum(logarithm, logarithm.max() - _FLOOR) + 4.0) / 4.0
