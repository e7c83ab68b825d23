"""Mel frames against the formula in float64, and the way back."""

from __future__ import annotations

import numpy as np
import torch
from transformers.audio_utils import mel_filter_bank

from configs.schema import MelConfig
from train.models.decoder.griffin_lim import GriffinLim, inverse_stft
from train.models.decoder.mel import Mel, hann

CONFIG = MelConfig()
WAVE = np.random.default_rng(0).standard_normal(22_050).astype(np.float32) * 0.1


def test_frames_are_those_of_the_formula() -> None:
    padded = np.pad(WAVE[: len(WAVE) // 256 * 256].astype(np.float64), 384, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    spectra = np.stack([np.fft.rfft(padded[256 * j : 256 * j + 1024] * window) for j in range(len(WAVE) // 256)])
    bank = mel_filter_bank(513, 80, 0.0, 8000.0, 22_050, norm="slaney", mel_scale="slaney")
    wanted = (np.log(np.maximum(np.sqrt(np.abs(spectra) ** 2 + 1e-9) @ bank, 1e-5)) + 7) / 3
    found = Mel(CONFIG)(torch.from_numpy(WAVE)[None])[0].T
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_a_spectrum_goes_back_to_its_wave() -> None:
    window, wave = hann(1024, torch.device("cpu")), torch.from_numpy(WAVE[: 256 * 40])[None]
    padded = torch.nn.functional.pad(wave, (384, 384))
    spectrum = torch.stft(padded, 1024, 256, window=window, center=False, return_complex=True)
    np.testing.assert_allclose(inverse_stft(spectrum, window, 256), wave, atol=1e-5)


def test_griffin_lim_finds_a_wave_of_the_same_mel() -> None:
    """Of a chord whose notes come one by one: most of the mel's energy is where it was."""
    time = np.arange(22_050) / 22_050
    chord = sum(np.sin(2 * np.pi * f * time) * (time > f / 2000) for f in (220, 660, 1320)).astype(np.float32) / 4
    mel = Mel(CONFIG)
    wanted = mel.magnitude(torch.from_numpy(chord)[None])
    said = GriffinLim(mel)(mel(torch.from_numpy(chord)[None]))
    assert said.shape == (1, 22_050 // 256 * 256)
    found = mel.magnitude(said)
    assert (found - wanted).norm() < 0.3 * wanted.norm()
