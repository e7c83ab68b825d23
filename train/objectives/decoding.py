"""What the parts of the speech decoder minimise, and the models that they are: codes to mel, mel to wave."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch

from configs.schema import Config, DecoderConfig
from data_pipeline.batch import Batch, Waves
from data_pipeline.layouts import Layout
from data_pipeline.layouts.groups import group_length
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput
from train.models.decoder.flow import draw
from train.models.decoder.learning import FLOW, MEL, VOCODER, FlowTask, TrainedFlow, TrainedVocoder, VocoderTask
from train.models.heads.terms import Losses
from train.models.replicated import Replicated


class FlowMatching:
    """The mean squared error of the flow, over bands and frames alike (see `train.models.decoder.flow`)."""

    main = FLOW
    sources: tuple[str, ...] = ()
    terms = 1

    def __init__(self, config: DecoderConfig, vocabulary: Vocabulary) -> None:
        self._config = config
        self._vocabulary = vocabulary

    def build(self) -> Replicated:
        vocabulary = self._vocabulary
        codes = sum(book.entries for book in vocabulary.codebooks)
        return TrainedFlow(self._config, codes, group_length(vocabulary) / vocabulary.group_seconds)

    def run(self, model: torch.nn.Module, batch: Batch, task: Any) -> Losses:
        return _run(model, batch, task)

    def targets(self, batch: Batch) -> FlowTask:
        """On the CPU, as the batch is."""
        waves = waves_of(batch)
        ids = batch.tokens[0][waves.places.clamp(min=0)] - self._first
        frames = waves.lengths // self._config.mel.hop
        return FlowTask(
            ids=torch.where(waves.places >= 0, ids, 0).clamp(min=0),
            lengths=(waves.places >= 0).sum(1),
            frames=frames,
            most_frames=int(frames.max()),
            drawn=draw(waves.seeds.tolist(), frames.tolist(), self._config),
        )

    def counts(self, batch: Batch) -> torch.Tensor:
        """float64 [1]: bands of all frames."""
        if batch.waves is None:
            return torch.zeros(1, dtype=torch.float64)
        frames = (batch.waves.lengths // self._config.mel.hop).sum()
        return (frames * self._config.mel.bands).double()[None]

    def sums(self, losses: Losses, batch: Batch) -> torch.Tensor:
        return losses[FLOW]["total"].detach().double()[None]

    def loss(self, losses: Losses, batch: Batch, counts: torch.Tensor) -> torch.Tensor:
        return losses[FLOW]["total"] / counts[0].clamp(min=1).float()

    def averages(self, sums: list[float], counts: list[float]) -> dict[str, float]:
        return {FLOW: sums[0] / counts[0]} if counts[0] else {}

    @cached_property
    def _first(self) -> int:
        """The id of the first code: those of all codebooks follow each other."""
        vocabulary = self._vocabulary
        return vocabulary.ranges[vocabulary.codebooks[0].name].start


class Vocoding:
    """Least-squares adversarial loss, L1 of inner activations and of log mels, and the discriminators' own loss, each a
    mean over samples (see `train.models.decoder.learning`). `mel` is told as the loss: it says how far the vocoder is,
    where the others say how the two sides of the game stand."""

    main = MEL
    sources: tuple[str, ...] = ()
    terms = len(VOCODER)

    def __init__(self, config: DecoderConfig) -> None:
        self._config = config
        sizes = config.vocoder
        self._weights = torch.tensor([1.0, sizes.features_weight, sizes.mel_weight, 1.0])  # in the order of VOCODER

    def build(self) -> Replicated:
        return TrainedVocoder(self._config)

    def run(self, model: torch.nn.Module, batch: Batch, task: Any) -> Losses:
        return _run(model, batch, task)

    def targets(self, batch: Batch) -> VocoderTask:
        waves = waves_of(batch)
        room = waves.lengths - self._config.vocoder.segment * self._config.mel.hop
        rows = zip(waves.seeds.tolist(), room.tolist(), strict=True)
        starts = [int(np.random.default_rng(seed).integers(max(free, 0) + 1)) for seed, free in rows]
        return VocoderTask(torch.tensor(starts))

    def counts(self, batch: Batch) -> torch.Tensor:
        """float64 [4]: samples, for each term."""
        samples = 0 if batch.waves is None else len(batch.waves.lengths)
        return torch.full((self.terms,), samples, dtype=torch.float64)

    def sums(self, losses: Losses, batch: Batch) -> torch.Tensor:
        return self._totals(losses).detach().double()

    def loss(self, losses: Losses, batch: Batch, counts: torch.Tensor) -> torch.Tensor:
        totals = self._totals(losses)
        return (totals * self._weights.to(totals)).sum() / counts[0].clamp(min=1).float()

    def averages(self, sums: list[float], counts: list[float]) -> dict[str, float]:
        return {name: total / count for name, total, count in zip(VOCODER, sums, counts, strict=True) if count}

    @staticmethod
    def _totals(losses: Losses) -> torch.Tensor:
        return torch.stack([losses[name]["total"] for name in VOCODER])


def decoding(config: Config, vocabulary: Vocabulary) -> FlowMatching | Vocoding:
    """The objective of a stage of kind decoder."""
    if config.stage.objective == "vocoder":
        return Vocoding(config.decoder)
    return FlowMatching(config.decoder, vocabulary)


def check_waves(layouts: Mapping[str, Layout], config: DecoderConfig) -> None:
    """Raises BadInput for a layout, by its source, that gives no sound, or other sound than the decoder is
    made for."""
    for source, layout in layouts.items():
        if not layout.sounds:
            raise BadInput(
                f"source {source}: layout {layout.name} gives no sound, which a decoder learns from; use resynthesis"
            )
        rate = layout.options.get("rate", config.mel.rate)
        if rate != config.mel.rate:
            raise BadInput(f"source {source}: its layout's rate {rate} is not decoder.mel.rate={config.mel.rate}")
        speaker = layout.options.get("speaker", "")
        if speaker != config.speaker:
            raise BadInput(
                f"source {source}: its layout's speaker {speaker!r} is not decoder.speaker={config.speaker!r}"
            )


def waves_of(batch: Batch) -> Waves:
    """The batch's waves; of one that is padding alone silence, so that every rank does as the others
    do."""
    if batch.waves is not None:
        return batch.waves
    device, samples = batch.tokens.device, 16_384
    return Waves(
        samples=torch.zeros(1, samples, device=device),
        lengths=torch.tensor([samples], device=device),
        speakers=torch.zeros(1, 0, device=device),
        seeds=torch.zeros(1, dtype=torch.int64, device=device),
        places=torch.zeros(1, 1, dtype=torch.int64, device=device),
    )


def _run(model: torch.nn.Module, batch: Batch, task: Any) -> Losses:
    losses: Losses = model(waves_of(batch), task)
    if batch.waves is None:
        for loss in losses.values():
            loss["total"] = 0 * loss["total"]
    return losses
