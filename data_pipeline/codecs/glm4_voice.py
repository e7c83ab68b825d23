"""GLM-4-Voice's tokenizer: the lower half of a Whisper encoder, pooled and quantised to one codebook.

Convolutions see no later frame, attention sees the blocks of 200 frames up to its own, where the published
config.json says so; it is read from there, as are layers, pooling and codebook.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs.schema import CodecConfig
from data_pipeline.audio import SAMPLE_RATE
from data_pipeline.codecs.batching import batch_samples, batches, padded, pick_device, windows
from data_pipeline.codecs.log_mel import HOP, LogMel
from data_pipeline.codecs.nearest import nearest
from data_pipeline.codecs.registry import codebooks_of, codec_identity
from data_pipeline.codecs.weights import read_config, read_tensors
from data_pipeline.codecs.whisper_tower import WhisperTower, load_strictly
from runtime.exits import BadInput

_WINDOW = 30 * SAMPLE_RATE  # longest input
_FRAME = 2 * HOP  # samples of an encoder frame
_PREFIX = "model.encoder."


class Glm4Voice:
    """One codebook. Frames = samples / (320 x pooling), rounded up, in every window of 30 s."""

    def __init__(self, config: CodecConfig) -> None:
        self.codebooks = codebooks_of(config)
        self.sample_rate = SAMPLE_RATE
        (book,) = self.codebooks
        spec = config.weights["encoder"]
        self._device = pick_device(config.device)
        shape = read_config(spec, "encoder")
        try:
            layers, size = shape["quantize_position"], shape["quantize_vocab_size"]
            self._pool = shape["pooling_kernel_size"] or 1
            self._average = {"avg": True, "max": False}[shape["pooling_type"]]
            self._block = shape.get("quantize_causal_block_size")
            if self._pool > 1 and shape["pooling_position"] != layers:
                raise BadInput(f"codec.weights.encoder={spec}: pools at another layer than it quantises")
            self._tower = WhisperTower(shape, layers, causal=bool(shape.get("encoder_causal_convolution")), final=False)
        except (KeyError, TypeError) as error:
            raise BadInput(
                f"codec.weights.encoder={spec}: config.json is no GLM-4-Voice tokenizer's: {error}"
            ) from error
        rate = SAMPLE_RATE / (_FRAME * self._pool)
        if size != book.size or abs(rate - book.rate) > 0.01 * rate:
            raise BadInput(f"codec.codebooks.{book.name}: the tokenizer has {size} codes, {rate:g} a second")
        state = read_tensors(spec, "encoder", lambda name: _ours(name, layers))
        codebook = state.pop("codebook.weight", torch.zeros(0))
        if codebook.shape != (size, shape["d_model"]):
            raise BadInput(f"codec.weights.encoder={spec}: the codebook has shape {tuple(codebook.shape)}")
        load_strictly(self._tower, state, f"codec.weights.encoder={spec}")
        self._tower = self._tower.to(self._device).eval()
        self._codebook = codebook.float().to(self._device)
        self._mel = LogMel(shape["num_mel_bins"], self._device)
        self._budget = batch_samples(config.batch_seconds, self._device, SAMPLE_RATE)
        self._identity = codec_identity(config)

    def encode(self, waves: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        """See `Codec.encode`. A window is padded with silence to whole codes, as published."""
        pieces, owners = windows(waves, _WINDOW)
        codes: list[np.ndarray] = [np.zeros(0, np.int32) for _ in pieces]
        for batch in batches([len(piece) for piece in pieces], self._budget):
            full = [index for index in batch if len(pieces[index])]
            for index, of in zip(full, self._codes([pieces[i] for i in full]) if full else [], strict=True):
                codes[index] = of
        parts: list[list[np.ndarray]] = [[] for _ in waves]
        for owner, of in zip(owners, codes, strict=True):
            parts[owner].append(of)
        return [{self.codebooks[0].name: np.concatenate(of)[None]} for of in parts]

    def _codes(self, pieces: list[np.ndarray]) -> list[np.ndarray]:
        code = _FRAME * self._pool  # samples
        counts = [-(-len(piece) // code) for piece in pieces]
        with torch.inference_mode():
            whole = [np.pad(piece, (0, count * code - len(piece))) for piece, count in zip(pieces, counts, strict=True)]
            mask = self._mask([-(-len(piece) // _FRAME) for piece in pieces], max(counts) * self._pool)
            hidden = self._tower(padded([self._mel(wave) for wave in whole]), mask)
            grouped = hidden.unflatten(1, (-1, self._pool))
            pooled = grouped.mean(2) if self._average else grouped.amax(2)
            found = nearest(pooled.flatten(0, 1), self._codebook).view(len(pieces), -1).cpu().numpy()
        return [of[:count].astype(np.int32) for of, count in zip(found, counts, strict=True)]

    def _mask(self, sound: list[int], frames: int) -> torch.Tensor:
        """bool [sounds, 1, frames, frames]: frames of sound that are earlier, or in the same block."""
        place = torch.arange(frames, device=self._device)
        mask = (place < torch.tensor(sound, device=self._device)[:, None])[:, None, None, :]
        if self._block:
            block = place // self._block
            mask = mask & (block[None, :] <= block[:, None])
        return mask.expand(-1, 1, frames, frames)

    def identity(self) -> str:
        """See `Codec.identity`."""
        return self._identity


def _ours(name: str, layers: int) -> str | None:
    """The name here of a published tensor; None for those that only training needs."""
    if not name.startswith(_PREFIX):
        return None
    name = name.removeprefix(_PREFIX)
    if name == "embed_positions.weight":
        return "positions"
    if name.startswith("layers."):
        return name if int(name.split(".")[1]) < layers else None
    return name if name.startswith(("conv1.", "conv2.", "codebook.")) else None


def open_codec(config: CodecConfig, folder: Path | None) -> Any:
    """See `registry.open_codec`."""
    return Glm4Voice(config)
