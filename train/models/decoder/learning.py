"""The parts of the decoder as they are trained: from a batch's waves and what is asked of them to named losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.func import functional_call
from torch.nn import functional

from configs.schema import DecoderConfig
from data_pipeline.batch import Waves, sent
from train.models.decoder.discriminators import Discriminators, Judgement
from train.models.decoder.flow import Drawn, Flow
from train.models.decoder.mel import Mel
from train.models.decoder.vocoder import Vocoder
from train.models.heads.terms import HeadLosses, Losses
from train.models.replicated import Replicated

FLOW = "flow"
ADVERSARIAL, FEATURES, MEL, DISCRIMINATOR = VOCODER = ("adversarial", "features", "mel", "discriminator")


@dataclass(frozen=True)
class FlowTask:
    """ids: int64 [S, most codes], 0.. for the first code of the first codebook; lengths, frames: int64 [S], codes and
    mel frames of each sample; most_frames: of any."""

    ids: torch.Tensor
    lengths: torch.Tensor
    frames: torch.Tensor
    most_frames: int
    drawn: Drawn

    def to(self, device: torch.device) -> FlowTask:
        ids, lengths, frames = (sent(part, device) for part in (self.ids, self.lengths, self.frames))
        return replace(self, ids=ids, lengths=lengths, frames=frames, drawn=self.drawn.to(device))


@dataclass(frozen=True)
class VocoderTask:
    """starts: int64 [S], first samples of the segments that are learnt from."""

    starts: torch.Tensor

    def to(self, device: torch.device) -> VocoderTask:
        return VocoderTask(sent(self.starts, device))


class TrainedFlow(Replicated):
    def __init__(self, config: DecoderConfig, codes: int, code_rate: float) -> None:
        super().__init__()
        self.mel = Mel(config.mel)
        self.flow = Flow(config, codes, code_rate)

    def forward(self, waves: Waves, task: FlowTask) -> Losses:
        # Silence after every sample alike, whichever is the longest of those beside it.
        mel = self.mel(functional.pad(waves.samples, (0, self.mel.config.window)))[:, :, : task.most_frames]
        error = self.flow(task.ids, task.lengths, waves.speakers, mel, task.frames, task.drawn)
        return {FLOW: _loss(error)}


class TrainedVocoder(Replicated):
    """The vocoder beside those that judge it.

    Both learn from one forward pass: the judges' loss sees the vocoder's waves without their gradient, the vocoder's
    sees the judges' weights without theirs. So one optimiser that steps all parameters is two that step at once, with
    the state and rate of each parameter its own. HiFi-GAN's code steps the judges first and judges anew; at once is our
    choice, for one engine, one loop and one checkpoint.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.segment = config.vocoder.segment * config.mel.hop
        self.mel = Mel(config.mel)
        self.generator = Vocoder(config)
        self.judges = Discriminators(config.vocoder)

    def forward(self, waves: Waves, task: VocoderTask) -> Losses:
        """Each loss a mean over a sample's elements and a sum over discriminators (HiFi-GAN) and over samples."""
        real = self._segments(waves, task.starts)
        target = self.mel(real)
        made = self.generator(target)
        judged = self.judges(real)
        losses = {
            DISCRIMINATOR: _judges_loss(judged, self.judges(made.detach())),
            MEL: _mean(self.mel(made) - target),
        }
        unmoved = {name: parameter.detach() for name, parameter in self.judges.named_parameters()}
        seen = functional_call(self.judges, unmoved, (made,))
        losses[ADVERSARIAL] = torch.stack([_square(1 - judgement.score) for judgement in seen]).sum(0)
        losses[FEATURES] = torch.stack([_feature_loss(a, b) for a, b in zip(judged, seen, strict=True)]).sum(0)
        return {name: _loss(losses[name].sum()) for name in VOCODER}

    def _segments(self, waves: Waves, starts: torch.Tensor) -> torch.Tensor:
        """[S, segment], with silence after a sound that is shorter."""
        places = starts[:, None] + torch.arange(self.segment, device=starts.device)
        known = places < waves.lengths[:, None]
        return waves.samples.gather(1, torch.where(known, places, 0)) * known


def _judges_loss(real: Sequence[Judgement], made: Sequence[Judgement]) -> torch.Tensor:
    """Least squares, as in HiFi-GAN: 1 for what was recorded, 0 for what was made; [S]."""
    return torch.stack(
        [_square(1 - own.score) + _square(other.score) for own, other in zip(real, made, strict=True)]
    ).sum(0)


def _feature_loss(real: Judgement, made: Judgement) -> torch.Tensor:
    """Mean distance of inner activations, added up over a discriminator's layers; [S]."""
    return torch.stack(
        [_mean(own.detach() - other) for own, other in zip(real.features, made.features, strict=True)]
    ).sum(0)


def _mean(difference: torch.Tensor) -> torch.Tensor:
    return difference.float().abs().flatten(1).mean(1)


def _square(difference: torch.Tensor) -> torch.Tensor:
    return difference.float().square().flatten(1).mean(1)


def _loss(total: torch.Tensor) -> HeadLosses:
    return {"total": total, "places": {}}
