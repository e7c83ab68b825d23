"""Baichuan-Audio's tokenizer: a whole Whisper encoder, a gated convolution that takes four frames, and residual
vector quantisation with tables of falling size, 12.5 times a second. Each table is a codebook of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import silu

from configs.schema import CodecConfig
from data_pipeline.audio import SAMPLE_RATE
from data_pipeline.codecs.batching import attention_mask, batch_samples, batches, padded, pick_device, windows
from data_pipeline.codecs.log_mel import HOP, LogMel
from data_pipeline.codecs.nearest import nearest
from data_pipeline.codecs.registry import codebooks_of, codec_identity
from data_pipeline.codecs.weights import read_config, read_tensors
from data_pipeline.codecs.whisper_tower import WhisperTower, load_strictly
from runtime.exits import BadInput

_WINDOW = 30 * SAMPLE_RATE  # longest input
_SHORTEST = 400  # samples of the spectrogram's window
_OURS = re.compile(r"(?:.*\.)?(audio_model|audio_bridge_model)\.(.+)")


class _Bridge(nn.Module):
    """Encoder states to what is quantised: `pool` neighbours, each side by side, and a gated projection of them."""

    def __init__(self, width: int, pool: int) -> None:
        super().__init__()
        self.pool = pool
        self.gate_proj = nn.Conv1d(width, width * pool, pool, pool, bias=False)
        self.up_proj = nn.Conv1d(width, width * pool, pool, pool, bias=False)
        self.down_proj = nn.Linear(width * pool, width * pool, bias=False)
        self.layer_norm = nn.LayerNorm(width * pool)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[sounds, frames // pool, width x pool] of [sounds, frames, width]."""
        whole = hidden[:, : hidden.shape[1] // self.pool * self.pool]
        over_time = whole.transpose(1, 2)
        gated = silu(self.gate_proj(over_time)) * self.up_proj(over_time)
        return self.layer_norm(self.down_proj(gated.transpose(1, 2)) + whole.unflatten(1, (-1, self.pool)).flatten(2))


class Baichuan:
    """The first `codec.codebooks` tables, in order. Of every window of 30 s, mel frames = samples / 160 rounded down
    + 1, at most 3000; encoder frames half of them, rounded up; codes a fourth of those, rounded down."""

    def __init__(self, config: CodecConfig) -> None:
        self.codebooks = codebooks_of(config)
        self.sample_rate = SAMPLE_RATE
        spec = config.weights["model"]
        where = f"codec.weights.model={spec}"
        self._device = pick_device(config.device)
        try:
            shape = read_config(spec, "model")["audio_config"]
            sizes = list(shape["vq_config"]["codebook_sizes"])
            pool = shape["avg_pooler"]
            positions = (
                shape["max_audio_seconds"] * shape["sampling_rate"] // shape["hop_length"] // shape["stride_size"]
            )
            tower = WhisperTower(
                {**shape, "max_source_positions": positions}, shape["encoder_layers"], causal=False, final=True
            )
            bridge = _Bridge(shape["d_model"], pool)
        except (KeyError, TypeError) as error:
            raise BadInput(f"{where}: config.json has no audio_config of a Baichuan tokenizer: {error}") from error
        rate = SAMPLE_RATE / (2 * HOP * pool)
        for place, book in enumerate(self.codebooks):
            if place >= len(sizes) or sizes[place] != book.size or abs(rate - book.rate) > 0.01 * rate:
                raise BadInput(
                    f"codec.codebooks.{book.name}: table {place} of {where}; there are {sizes}, {rate:g} a second"
                )
        state = read_tensors(spec, "model", _ours)
        tables = [state.pop(f"audio_bridge_model.table.{place}", torch.zeros(0)) for place in range(len(sizes))]
        for place, table in enumerate(tables):
            if table.shape != (sizes[place], shape["d_model"] * pool):
                raise BadInput(f"{where}: table {place} has shape {tuple(table.shape)}")
        for module, name in ((tower, "audio_model."), (bridge, "audio_bridge_model.")):
            load_strictly(module, {k.removeprefix(name): v for k, v in state.items() if k.startswith(name)}, where)
        self._tower, self._bridge = tower.to(self._device).eval(), bridge.to(self._device).eval()
        self._tables = [table.float().to(self._device) for table in tables[: len(self.codebooks)]]
        self._mel = LogMel(shape["num_mel_bins"], self._device)
        self._budget = batch_samples(config.batch_seconds, self._device, SAMPLE_RATE)
        self._identity = codec_identity(config)

    def encode(self, waves: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        """See `Codec.encode`."""
        pieces, owners = windows(waves, _WINDOW)
        codes = [np.zeros((len(self._tables), 0), np.int32) for _ in pieces]
        long_enough = [index for index, piece in enumerate(pieces) if _counts(len(piece), self._bridge.pool)[1]]
        for batch in batches([len(pieces[index]) for index in long_enough], self._budget):
            group = [long_enough[place] for place in batch]
            for index, of in zip(group, self._codes([pieces[i] for i in group]), strict=True):
                codes[index] = of
        parts: list[list[np.ndarray]] = [[] for _ in waves]
        for owner, of in zip(owners, codes, strict=True):
            parts[owner].append(of)
        names = [book.name for book in self.codebooks]
        return [dict(zip(names, np.concatenate(of, axis=1)[:, None], strict=True)) for of in parts]

    def _codes(self, pieces: list[np.ndarray]) -> list[np.ndarray]:
        """int32 [tables, codes] of each window."""
        counts = [_counts(len(piece), self._bridge.pool) for piece in pieces]
        frames = [frames for frames, _ in counts]
        with torch.inference_mode():
            mels = [self._features(piece) for piece in pieces]
            mels = [torch.nn.functional.pad(mel, (0, mel.shape[1] % 2)) for mel in mels]
            residual = self._bridge(self._tower(padded(mels), attention_mask(frames, self._device))).flatten(0, 1)
            found = []
            for table in self._tables:
                found.append(nearest(residual, table))
                residual = residual - table[found[-1]]
            stacked = torch.stack(found).unflatten(1, (len(pieces), -1)).cpu().numpy().astype(np.int32)
        return [stacked[:, place, :codes] for place, (_, codes) in enumerate(counts)]

    def _features(self, piece: np.ndarray) -> torch.Tensor:
        """[bands, mel frames]: as of the window with silence up to 30 s, but only where there is sound."""
        silence = min(_SHORTEST, _WINDOW - len(piece))
        return self._mel(np.pad(piece, (0, silence)))[:, : _mel_frames(len(piece))]

    def identity(self) -> str:
        """See `Codec.identity`."""
        return self._identity


def _mel_frames(samples: int) -> int:
    return min(samples // HOP + 1, _WINDOW // HOP)


def _counts(samples: int, pool: int) -> tuple[int, int]:
    """Encoder frames and codes of a window; none below the spectrogram's window."""
    if samples < _SHORTEST:
        return 0, 0
    frames = (_mel_frames(samples) + 1) // 2
    return frames, frames // pool


def _ours(name: str) -> str | None:
    """The name here of a published tensor; None for those that encoding does not need."""
    match = _OURS.fullmatch(name)
    if match is None:
        return None
    part, rest = match.groups()
    if table := re.fullmatch(r"vq_list\.(\d+)\.codebook\.embed", rest):
        return f"{part}.table.{table[1]}"
    if rest == "positional_embedding":
        return f"{part}.positions"
    return None if rest.startswith(("proj_decoder.", "vq_list.")) else f"{part}.{rest}"


def open_codec(config: CodecConfig, folder: Path | None) -> Baichuan:
    """See `registry.open_codec`."""
    return Baichuan(config)
