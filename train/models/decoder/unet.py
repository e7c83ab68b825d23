"""The U-Net that estimates the flow: Matcha-TTS's one-dimensional one (Mehta et al. 2023, 2309.03199), as CosyVoice and
Step-Audio have it, with norms over the channels of each frame instead of groups over time (our choice: see `layers`).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from configs.schema import FlowConfig
from train.models.decoder.layers import RESIDUAL_REACH, FrameNorm, Residual, Transformer, attention_mask, time_embedding


class Stage(nn.Module):
    """A residual layer and some transformer blocks at one level."""

    def __init__(self, inputs: int, outputs: int, time: int, config: FlowConfig) -> None:
        super().__init__()
        self.residual = Residual(inputs, outputs, time)
        self.blocks = nn.ModuleList(Transformer(outputs, config.heads, config.head_dim) for _ in range(config.blocks))

    def forward(self, x: torch.Tensor, mask: torch.Tensor, seen: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        x = self.residual(x, mask, time)
        for block in self.blocks:
            x = block(x, seen)
        return x * mask


def stage_reach(config: FlowConfig) -> int:
    """Frames of its level before and after one that decide what a stage makes of it; attention has to be bounded."""
    assert config.reach is not None
    return RESIDUAL_REACH + config.blocks * config.reach


def unet_reach(config: FlowConfig) -> int:
    """Frames before and after one that decide the flow at it; at most, since halves of pairs are counted whole."""
    levels = len(config.channels)
    stages = sum(2 * stage_reach(config) * 2**level for level in range(levels))
    between = sum((1 + 2) * 2**level for level in range(levels - 1))
    middle = config.middle * stage_reach(config) * 2 ** (levels - 1)
    return stages + between + middle + 1 + 2 ** (levels - 1)


class UNet(nn.Module):
    """Estimates the flow at a noisy mel, from what conditions it.

    Going down, every level but the last halves the number of frames; going up, each takes what its twin left.
    """

    def __init__(self, inputs: int, outputs: int, config: FlowConfig) -> None:
        super().__init__()
        widths = config.channels
        self.config = config
        self.width = inputs
        time = 4 * widths[0]
        self.time = nn.Sequential(nn.Linear(inputs, time), nn.SiLU(), nn.Linear(time, time))
        ins = [inputs, *widths[:-1]]
        self.down = nn.ModuleList(Stage(i, o, time, config) for i, o in zip(ins, widths, strict=True))
        self.downsample = nn.ModuleList(nn.Conv1d(width, width, 3, stride=2, padding=1) for width in widths[:-1])
        self.middle = nn.ModuleList(Stage(widths[-1], widths[-1], time, config) for _ in range(config.middle))
        outs = [*reversed(widths[:-1]), widths[0]]
        self.up = nn.ModuleList(Stage(2 * i, o, time, config) for i, o in zip(reversed(widths), outs, strict=True))
        self.upsample = nn.ModuleList(
            nn.ConvTranspose1d(width, width, 4, stride=2, padding=1) for width in reversed(widths[:-1])
        )
        self.last = nn.Conv1d(widths[0], widths[0], 3, padding=1)
        self.norm = FrameNorm(widths[0])
        self.out = nn.Conv1d(widths[0], outputs, 1)
        nn.init.zeros_(self.out.weight)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """[B, outputs, frames], of x [B, inputs, frames], mask [B, 1, frames] (1 on real frames) and time [B]."""
        frames = x.shape[2]
        coarsest = 2 ** len(self.downsample)
        x, mask = (functional.pad(part, (0, -frames % coarsest)) for part in (x, mask.to(x.dtype)))
        at = self.time(time_embedding(time, self.width).to(x.dtype))
        masks, seen, kept = [mask], [attention_mask(mask, self.config.reach)], []
        for level, stage in enumerate(self.down):
            x = stage(x, masks[-1], seen[-1], at)
            kept.append(x)
            if level < len(self.downsample):
                x = self.downsample[level](x * masks[-1])
                masks.append(masks[-1][:, :, ::2])
                seen.append(attention_mask(masks[-1], self.config.reach))
        for stage in self.middle:
            x = stage(x, masks[-1], seen[-1], at)
        for level, stage in enumerate(self.up):
            depth = len(self.downsample) - level
            x = stage(torch.cat([x, kept.pop()], dim=1), masks[depth], seen[depth], at)
            if depth:
                x = self.upsample[level](x * masks[depth]) * masks[depth - 1]
        x = functional.mish(self.norm(self.last(x * masks[0])))
        return (self.out(x * masks[0]) * masks[0])[:, :, :frames]
