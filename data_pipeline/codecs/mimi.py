"""Mimi: 24 kHz sound to residual codes 12.5 times a second; of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs.schema import CodecConfig
from data_pipeline.codecs.batching import batch_samples, batches, padded, pick_device
from data_pipeline.codecs.registry import codebooks_of, codec_identity
from data_pipeline.codecs.weights import from_pretrained
from runtime.exits import BadInput

LONG = 60  # seconds above which a wave is encoded piece by piece


class Mimi:
    """One codebook of `rows` tables: the first semantic, the others acoustic.

    Everything in the encoder looks back only, so that what follows a wave in a batch does not reach it.
    """

    def __init__(self, config: CodecConfig) -> None:
        from transformers import MimiModel

        self.codebooks = codebooks_of(config)
        (book,) = self.codebooks
        self._device = pick_device(config.device)
        spec = config.weights["model"]
        model = from_pretrained(MimiModel, spec, "model")
        shape = model.config
        if not shape.use_causal_conv:
            raise BadInput(
                f"codec.weights.model={spec}: its convolutions look ahead, so codes would depend on the batch"
            )
        if shape.codebook_size != book.size or abs(shape.frame_rate - book.rate) > 0.01 * book.rate:
            raise BadInput(
                f"codec.codebooks.{book.name}: the model has {shape.codebook_size} codes, {shape.frame_rate:g} a second"
            )
        if book.rows > shape.num_quantizers:
            raise BadInput(f"codec.codebooks.{book.name}.rows={book.rows}: the model has {shape.num_quantizers}")
        self.sample_rate: int = shape.sampling_rate
        self.frame = round(shape.sampling_rate / shape.frame_rate)
        self.model = model.to(self._device)
        self._book = book
        self._budget = batch_samples(config.batch_seconds, self._device, self.sample_rate)
        self._identity = codec_identity(config)

    def encode(self, waves: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        """See `Codec.encode`. Frames = samples / 1920, rounded up: silence makes the last one whole."""
        found = [np.zeros((self._book.rows, 0), np.int32) for _ in waves]
        counts = [-(-len(wave) // self.frame) for wave in waves]
        sounding = [index for index, count in enumerate(counts) if count]
        for index in (index for index in sounding if len(waves[index]) > LONG * self.sample_rate):
            found[index] = self._long(waves[index])
        sounding = [index for index in sounding if len(waves[index]) <= LONG * self.sample_rate]
        for batch in batches([counts[index] * self.frame for index in sounding], self._budget):
            group = [sounding[place] for place in batch]
            sound = padded([self._tensor(waves[index], counts[index]) for index in group])
            with torch.inference_mode():
                codes = self.model.encode(sound, num_quantizers=self._book.rows, use_streaming=False).audio_codes
            for index, of in zip(group, codes.cpu().numpy(), strict=True):
                found[index] = of[:, : counts[index]].astype(np.int32)
        return [{self._book.name: of} for of in found]

    def _long(self, wave: np.ndarray) -> np.ndarray:
        """int32 [rows, frames] of a wave whose activations would not fit the memory: the same, piece by piece."""
        stream, piece = self.stream(), LONG * self.sample_rate
        starts = range(0, len(wave), piece)
        parts = [stream.encode(wave[at : at + piece], last=at + piece >= len(wave)) for at in starts]
        return np.concatenate([part[self._book.name] for part in parts], axis=1)

    def _tensor(self, wave: np.ndarray, frames: int) -> torch.Tensor:
        whole = np.pad(wave.astype(np.float32), (0, frames * self.frame - len(wave)))
        return torch.from_numpy(whole).to(self._device)[None]

    def stream(self) -> MimiStream:
        return MimiStream(self)

    def step(self, wave: np.ndarray, state: dict[str, Any]) -> np.ndarray:
        """int32 [rows, frames]: codes of whole frames that follow those before; `state` moves on."""
        with torch.inference_mode():
            made = self.model.encode(
                self._tensor(wave, len(wave) // self.frame)[None],
                num_quantizers=self._book.rows,
                use_streaming=True,
                **state,
            )
        state.update(encoder_past_key_values=made.encoder_past_key_values, padding_cache=made.padding_cache)
        return made.audio_codes[0].cpu().numpy().astype(np.int32)

    def identity(self) -> str:
        """See `Codec.identity`."""
        return self._identity


class MimiStream:
    """See `Stream`: codes of every whole frame (80 ms) as it comes, with transformers' caches."""

    def __init__(self, codec: Mimi) -> None:
        self._codec = codec
        self._state: dict[str, Any] = {}
        self._samples = np.zeros(0, np.float32)  # not yet a frame
        self._ended = False

    def encode(self, wave: np.ndarray, *, last: bool = False) -> dict[str, np.ndarray]:
        """See `Stream.encode`."""
        if self._ended:
            raise ValueError("the stream has ended")
        self._ended = last
        frame, book = self._codec.frame, self._codec.codebooks[0]
        sound = np.concatenate([self._samples, wave.astype(np.float32)])
        frames = -(-len(sound) // frame) if last else len(sound) // frame
        self._samples = sound[frames * frame :]
        codes = np.zeros((book.rows, 0), np.int32)
        if frames:
            whole = sound[: frames * frame]
            codes = self._codec.step(np.pad(whole, (0, frames * frame - len(whole))), self._state)
        return {book.name: codes}


def open_codec(config: CodecConfig, folder: Path | None) -> Mimi:
    """See `registry.open_codec`."""
    return Mimi(config)
