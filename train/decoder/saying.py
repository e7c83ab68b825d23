"""Codes as they come, and the sound of any stretch of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from configs.schema import DecoderConfig
from data_pipeline.layouts.groups import group_length, ungroup
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput
from train.decoder.noise import noise_between
from train.models.decoder.flow import Flow
from train.models.decoder.layers import mask_of
from train.models.decoder.mel import Mel


@dataclass(frozen=True)
class Parts:
    """What makes sound of codes. vocode: mels, float32 [B, bands, frames], to waves [B, frames x hop]."""

    config: DecoderConfig
    vocabulary: Vocabulary
    flow: Flow
    vocode: Callable[[torch.Tensor], torch.Tensor]

    @property
    def device(self) -> torch.device:
        return next(self.flow.parameters()).device

    def frame(self, group: int) -> int:
        """Mel frames that are whole before a group of codes begins."""
        mel = self.config.mel
        return int(group * self.vocabulary.group_seconds * mel.rate + 1e-6) // mel.hop


@dataclass(frozen=True)
class Prompt:
    """Speech that what follows is to sound like: its codes, int64 [n] ids of the vocabulary in whole groups, and its
    sound, float32 [samples] at the decoder's rate."""

    ids: np.ndarray
    wave: np.ndarray


class Saying:
    """Codes given so far, after those of the prompt. speaker: float32 [width], as training had it; None: nobody's."""

    def __init__(self, parts: Parts, speaker: np.ndarray | None, prompt: Prompt | None, seed: int) -> None:
        self._parts = parts
        self._seed = seed
        self._group = group_length(parts.vocabulary)
        self._first = parts.vocabulary.ranges[parts.vocabulary.codebooks[0].name].start
        self._speaker = np.zeros((1, 0), np.float32) if speaker is None else speaker[None].astype(np.float32)
        wanted = parts.config.speaker_width
        if speaker is not None and speaker.shape != (wanted,):
            raise BadInput(f"a speaker vector of {wanted} numbers is wanted, not one of shape {list(speaker.shape)}")
        self._ids = np.zeros(0, np.int64)
        self._prompt = torch.zeros(parts.config.mel.bands, 0, device=parts.device)
        if prompt is not None:
            self.add(prompt.ids)
            self.end()
            self._prompt = self._mel_of(prompt.wave)
        self.start = self.groups

    @property
    def groups(self) -> int:
        """Whole groups so far."""
        return len(self._ids) // self._group

    def add(self, ids: np.ndarray) -> None:
        """More codes, int64 [n]. Raises BadInput where one of a group that is whole now is not of the codebook whose
        turn it is."""
        self._ids = np.concatenate([self._ids, np.asarray(ids, np.int64)])
        ungroup(self._ids[: self.groups * self._group], self._parts.vocabulary)

    def end(self) -> None:
        """Raises BadInput for codes that end inside a group, and where there are none."""
        ungroup(self._ids, self._parts.vocabulary)
        if not self.groups:
            raise BadInput("no codes to say: not one whole group")

    @torch.no_grad()
    def piece(self, low: int, high: int, begin: int, end: int, beyond: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """The sound of groups [begin, end), and `beyond` samples after it, decoded with those of [low, high).

        Frames are those of the whole, and even ones stay even, as the U-Net's halves of time need it.
        """
        parts, device = self._parts, self._parts.device
        config, flow = parts.config, parts.flow
        coarsest = 2 ** (len(config.flow.channels) - 1)
        first = -(-parts.frame(low) // coarsest) * coarsest
        frames = parts.frame(high) - first
        ids = torch.from_numpy(self._ids[low * self._group : high * self._group] - self._first)[None].to(device)
        noise = torch.from_numpy(noise_between(self._seed, first, first + frames, config.mel.bands))[None].to(device)
        given = torch.zeros_like(noise)
        known = self._prompt[:, first : first + frames]
        given[0, :, : known.shape[1]] = known
        count = torch.tensor([frames], device=device)
        conditions = flow.conditions(
            ids,
            torch.tensor([ids.shape[1]], device=device),
            torch.from_numpy(self._speaker).to(device),
            given,
            count,
            ahead=first * flow.codes_a_frame - low * self._group,
        )
        mel = flow.integrate(noise, mask_of(count, frames), conditions, config.flow.euler_steps, config.flow.guidance)
        wave = parts.vocode(mel)[0].float().cpu().numpy()
        start, stop = (config.mel.hop * (parts.frame(group) - first) for group in (begin, end))
        return wave[max(start, 0) : stop], wave[stop : stop + beyond]

    def _mel_of(self, wave: np.ndarray) -> torch.Tensor:
        """Mel of the prompt's groups, [bands, frames], with silence after a sound that is shorter."""
        frames, mel = self._parts.frame(self.groups), self._parts.config.mel
        padded = np.zeros(frames * mel.hop + mel.window, np.float32)
        padded[: len(wave)] = wave[: len(padded)]
        return Mel(mel)(torch.from_numpy(padded)[None].to(self._parts.device))[0, :, :frames]
