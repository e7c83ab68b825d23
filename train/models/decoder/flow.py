"""Codes to mel by conditional flow matching, as in CosyVoice (2407.05407) and Step-Audio's decoder.

    x_t = (1 - (1 - sigma) t) z + t x,   dx/dt = x - (1 - sigma) z,   z ~ N(0, 1), x the mel

A U-Net learns dx/dt from x_t, t and three conditions, all as wide as the mel: the encoded codes stretched to the mel's
frames, the speaker's vector, and the mel of a prompt, zero where there is none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import nn

from configs.schema import DecoderConfig
from data_pipeline.batch import sent
from train.models.decoder.layers import RESIDUAL_REACH, Residual, Transformer, attention_mask, mask_of
from train.models.decoder.unet import UNet, unet_reach


@dataclass(frozen=True)
class Drawn:
    """What chance decides for each of S samples in one step. time: float32 [S], of the flow; conditioned: bool [S];
    prompt: int64 [S], frames of the sample's own mel that are given; noise: float32 [S, bands, most frames]."""

    time: torch.Tensor
    conditioned: torch.Tensor
    prompt: torch.Tensor
    noise: torch.Tensor

    def to(self, device: torch.device) -> Drawn:
        return replace(self, **{f.name: sent(getattr(self, f.name), device) for f in fields(self)})


def draw(seeds: Sequence[int], frames: Sequence[int], config: DecoderConfig) -> Drawn:
    """The same for a sample wherever and beside whatever it is learnt. Times are as dense as cosine steps are:
    1 - cos(u pi / 2), u uniform (cosyvoice/flow/flow_matching.py)."""
    flow = config.flow
    times, conditioned, prompts = [], [], []
    noise = np.zeros((len(seeds), max(frames), config.mel.bands), np.float32)
    for row, (seed, count) in enumerate(zip(seeds, frames, strict=True)):
        rng = np.random.default_rng(seed)
        uniform, kept, prompted, share = rng.random(4)
        times.append(1 - math.cos(uniform * math.pi / 2))
        conditioned.append(kept >= flow.drop)
        prompts.append(int(share * flow.longest_prompt * count) if prompted < flow.prompt_share else 0)
        noise[row, :count] = rng.standard_normal((count, config.mel.bands), np.float32)
    return Drawn(
        time=torch.tensor(times, dtype=torch.float32),
        conditioned=torch.tensor(conditioned),
        prompt=torch.tensor(prompts),
        noise=torch.from_numpy(noise).transpose(1, 2),
    )


@dataclass(frozen=True)
class Conditions:
    """What the flow is conditioned on, all [B, bands, frames]: encoded codes, voice, mel of the prompt."""

    codes: torch.Tensor
    voice: torch.Tensor
    prompt: torch.Tensor

    def none(self) -> Conditions:
        return Conditions(*(torch.zeros_like(getattr(self, f.name)) for f in fields(self)))

    def where(self, given: torch.Tensor) -> Conditions:
        """Those of the rows that are `given`, bool [B]; zeros in the others."""
        kept = given[:, None, None]
        return Conditions(*(getattr(self, f.name) * kept for f in fields(self)))


class Flow(nn.Module):
    """codes: how many there are, of all codebooks together; code_rate: of them a second, of all together."""

    def __init__(self, config: DecoderConfig, codes: int, code_rate: float) -> None:
        super().__init__()
        flow, bands = config.flow, config.mel.bands
        self.config = config
        self.codes_a_frame = code_rate * config.mel.hop / config.mel.rate
        self.embedding = nn.Embedding(codes, flow.embedding)
        self.mixing = nn.ModuleList(Residual(flow.embedding, flow.embedding) for _ in range(flow.encoder_layers))
        self.attention = nn.ModuleList(
            Transformer(flow.embedding, flow.heads, flow.head_dim) for _ in range(flow.encoder_layers)
        )
        self.encoded = nn.Linear(flow.embedding, bands)
        self.voice = nn.Linear(config.speaker_width, bands)
        self.estimator = UNet(4 * bands, bands, flow)

    @property
    def encoder_reach(self) -> int:
        """Codes before and after one that decide what it is encoded as, where attention is bounded."""
        flow = self.config.flow
        assert flow.reach is not None
        return flow.encoder_layers * (RESIDUAL_REACH + flow.reach) + 1  # the neighbour that a frame lies between

    @property
    def frames_reach(self) -> int:
        """Frames before and after one whose noise and conditions decide its mel, where attention is bounded."""
        return self.config.flow.euler_steps * unet_reach(self.config.flow)

    # --- learning -------------------------------------------------------------------------------------------

    def forward(
        self,
        ids: torch.Tensor,
        lengths: torch.Tensor,
        speakers: torch.Tensor,
        mel: torch.Tensor,
        frames: torch.Tensor,
        drawn: Drawn,
    ) -> torch.Tensor:
        """Squared error of the flow, added up over all bands of all real frames, a scalar in fp32.

        ids: int64 [B, most codes]; speakers: [B, width]; mel: [B, bands, most frames]; lengths, frames: int64 [B].
        """
        mask = mask_of(frames, mel.shape[2])
        prompted = mask_of(drawn.prompt, mel.shape[2])
        conditions = self.conditions(ids, lengths, speakers, mel * prompted, frames).where(drawn.conditioned)
        shrink = 1 - self.config.flow.sigma_min
        time = drawn.time[:, None, None]
        noisy = (1 - shrink * time) * drawn.noise + time * mel
        error = self.estimate(noisy, mask, drawn.time, conditions).float() - (mel - shrink * drawn.noise)
        return (error.square() * mask).sum()

    # --- conditions -----------------------------------------------------------------------------------------

    def conditions(
        self,
        ids: torch.Tensor,
        lengths: torch.Tensor,
        speakers: torch.Tensor,
        prompt: torch.Tensor,
        frames: torch.Tensor,
        ahead: float = 0.0,
    ) -> Conditions:
        """prompt: [B, bands, most frames], zero where there is none. speakers of width 0: nobody's voice. ahead: codes
        by which the first frame begins after the first code."""
        most = prompt.shape[2]
        codes = self.stretched(self.encode(ids, lengths), lengths, most, ahead) * mask_of(frames, most)
        if not speakers.shape[1]:
            speakers = speakers.new_zeros(len(speakers), self.config.speaker_width)
        voice = self.voice(nn.functional.normalize(speakers.to(codes.dtype), dim=1))[:, :, None]
        return Conditions(codes, voice.expand_as(codes), prompt.to(codes.dtype))

    def encode(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """[B, bands, codes]"""
        mask = mask_of(lengths, ids.shape[1]).to(self.embedding.weight.dtype)
        seen = attention_mask(mask, self.config.flow.reach)
        x = self.embedding(ids).transpose(1, 2)
        for mixing, attention in zip(self.mixing, self.attention, strict=True):
            x = attention(mixing(x, mask), seen)
        return self.encoded(x.transpose(1, 2)).transpose(1, 2) * mask

    def stretched(self, encoded: torch.Tensor, lengths: torch.Tensor, frames: int, ahead: float = 0.0) -> torch.Tensor:
        """Codes as mel frames, [B, bands, frames]: between the two codes around the middle of a frame, as far as it is
        from each. Frames beyond the last code repeat it."""
        at = (torch.arange(frames, device=encoded.device) + 0.5) * self.codes_a_frame + (ahead - 0.5)
        at = torch.minimum(at.clamp(min=0.0)[None], (lengths[:, None] - 1).to(at.dtype))
        low = at.floor().long()
        high = torch.minimum(low + 1, lengths[:, None] - 1)
        share = (at - low)[:, None].to(encoded.dtype)

        def taken(places: torch.Tensor) -> torch.Tensor:
            return encoded.gather(2, places[:, None].expand(-1, encoded.shape[1], -1))

        return taken(low) * (1 - share) + taken(high) * share

    # --- the flow -------------------------------------------------------------------------------------------

    def estimate(
        self, noisy: torch.Tensor, mask: torch.Tensor, time: torch.Tensor, conditions: Conditions
    ) -> torch.Tensor:
        """dx/dt [B, bands, frames] at `noisy`; time: [B]."""
        x = torch.cat([noisy.to(conditions.codes.dtype), conditions.codes, conditions.voice, conditions.prompt], dim=1)
        return self.estimator(x * mask, mask, time)

    @torch.no_grad()
    def integrate(
        self, noise: torch.Tensor, mask: torch.Tensor, conditions: Conditions, steps: int, guidance: float
    ) -> torch.Tensor:
        """The mel that `noise` flows to: Euler's method at times 1 - cos(k/n pi/2), the flow guided away from the
        unconditional one."""
        x, times = noise, 1 - torch.cos(torch.linspace(0, 1, steps + 1, dtype=torch.float64) * (math.pi / 2))
        both = conditions
        if guidance:
            none = conditions.none()
            both = Conditions(
                *(torch.cat([getattr(conditions, f.name), getattr(none, f.name)]) for f in fields(conditions))
            )
        copies = len(both.codes) // len(noise)
        for now, then in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
            at = torch.full((copies * len(noise),), now, device=x.device)
            flow = self.estimate(x.repeat(copies, 1, 1), mask.repeat(copies, 1, 1), at, both).float()
            if guidance:
                given, free = flow.chunk(2)
                flow = (1 + guidance) * given - guidance * free
            x = x + (then - now) * flow
        return x
