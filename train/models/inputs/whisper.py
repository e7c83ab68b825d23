"""Whisper's encoder inside of the model, where it can be trained. Parameters have transformers' names."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import gelu

from configs.audio_input import RATES
from configs.schema import EncoderConfig, EncoderKind
from train.models.inputs.layered import Layered
from train.models.inputs.runs import Runs, attended, end_to_end, ends_of, windows

MELS_A_VECTOR = RATES[EncoderKind.whisper].inputs


class WhisperEncoder(Layered):
    """Two convolutions (the second of stride 2), positions, layers, a norm: log-mel spectrograms to vectors.

    Only the sound there is gets encoded, not windows padded to 30 s: positions are those of a window's beginning. What
    is longer than a window is encoded as several.
    """

    def __init__(self, config: EncoderConfig) -> None:
        from transformers import WhisperConfig
        from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

        super().__init__()
        assert config.positions is not None, "checked"
        shape = WhisperConfig(
            d_model=config.width,
            encoder_attention_heads=config.heads,
            encoder_ffn_dim=config.ffn,
            attn_implementation="sdpa",
        )
        self.window = MELS_A_VECTOR * config.positions
        self.conv1 = nn.Conv1d(config.mels, config.width, 3, padding=1)
        self.conv2 = nn.Conv1d(config.width, config.width, 3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(config.positions, config.width)
        self.layers = nn.ModuleList([WhisperEncoderLayer(shape) for _ in range(config.layers)])
        self.layer_norm = nn.LayerNorm(config.width)

    def forward(self, mels: Runs) -> Runs:
        """Runs of spectrograms' frames [F, mels] -> of vectors, half as many of each, rounded up: [F', width]."""
        cut = windows(mels, self.window)
        rows, real = cut.side_by_side()
        # Nothing is what a convolution sees behind a sound's end, whatever it is batched with.
        inner = gelu(self.conv1(rows.transpose(1, 2))).masked_fill(~real[:, None], 0)
        hidden = gelu(self.conv2(inner)).transpose(1, 2)
        hidden = hidden + self.embed_positions(torch.arange(hidden.shape[1], device=hidden.device))
        counts = _halved(cut.lengths)
        mask = attended(torch.arange(hidden.shape[1], device=hidden.device) < counts[:, None])
        for layer in self.layers:
            hidden = layer(hidden, mask)
        most = len(mels.frames) // MELS_A_VECTOR + len(mels.ends)
        # Whole windows make as many vectors as the runs that they are cut from do, in the same order.
        vectors = end_to_end(self.layer_norm(hidden), ends_of(counts), most)
        return Runs(vectors, ends_of(_halved(mels.lengths)), -(-mels.longest // MELS_A_VECTOR))


def _halved(lengths: torch.Tensor) -> torch.Tensor:
    return (lengths + 1) // MELS_A_VECTOR
