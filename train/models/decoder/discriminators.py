"""What judges a vocoder's waves: by their periods (HiFi-GAN, 2010.05646, section 2.3) and by spectrograms at several
resolutions (UnivNet, 2106.07889, section 2.2)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from configs.schema import VocoderConfig
from train.models.decoder.mel import hann

_SLOPE = 0.1


@dataclass(frozen=True)
class Judgement:
    """Of one discriminator: what it says of every stretch, and its inner activations."""

    score: torch.Tensor
    features: list[torch.Tensor]


class Period(nn.Module):
    """Looks at every `period`-th sample, as columns of a picture."""

    def __init__(self, period: int, width: int) -> None:
        super().__init__()
        self.period = period
        widths = [1, width, 4 * width, 16 * width, 32 * width]
        pairs = list(itertools.pairwise(widths))
        self.layers = nn.ModuleList(
            [
                *(weight_norm(nn.Conv2d(i, o, (5, 1), (3, 1), padding=(2, 0))) for i, o in pairs),
                weight_norm(nn.Conv2d(widths[-1], widths[-1], (5, 1), padding=(2, 0))),
            ]
        )
        self.last = weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, wave: torch.Tensor) -> Judgement:
        """wave: [B, samples]"""
        padded = functional.pad(wave, (0, -wave.shape[1] % self.period), mode="reflect")
        return _judged(padded.view(len(wave), 1, -1, self.period), self.layers, self.last)


class Resolution(nn.Module):
    """Looks at the magnitudes of a Fourier transform of `window` samples, hops of a quarter of it."""

    def __init__(self, window: int, width: int) -> None:
        super().__init__()
        self.window = window
        steps = [(1, 1), (1, 2), (1, 2), (1, 2)]
        self.layers = nn.ModuleList(
            [
                *(
                    weight_norm(nn.Conv2d(width if number else 1, width, (3, 9), step, padding=(1, 4)))
                    for number, step in enumerate(steps)
                ),
                weight_norm(nn.Conv2d(width, width, (3, 3), padding=(1, 1))),
            ]
        )
        self.last = weight_norm(nn.Conv2d(width, 1, (3, 3), padding=(1, 1)))

    def forward(self, wave: torch.Tensor) -> Judgement:
        """wave: [B, samples]"""
        window = hann(self.window, wave.device)
        spectrum = torch.stft(wave, self.window, self.window // 4, window=window, return_complex=True)
        power = torch.view_as_real(spectrum).square().sum(-1)
        picture = (power + 1e-9).sqrt().transpose(1, 2)[:, None]  # [B, 1, frames, frequencies]
        return _judged(picture, self.layers, self.last)


class Discriminators(nn.Module):
    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        width = config.discriminator_width
        self.judges = nn.ModuleList(
            [
                *(Period(period, width) for period in config.periods),
                *(Resolution(window, width) for window in config.windows),
            ]
        )

    def forward(self, wave: torch.Tensor) -> list[Judgement]:
        """What each says of waves, float32 [B, samples]."""
        return [judge(wave) for judge in self.judges]


def _judged(picture: torch.Tensor, layers: nn.ModuleList, last: nn.Module) -> Judgement:
    features = []
    picture = picture.to(next(layers.parameters()).dtype)
    for layer in layers:
        picture = functional.leaky_relu(layer(picture), _SLOPE)
        features.append(picture)
    return Judgement(last(picture), features)
