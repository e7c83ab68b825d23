"""What makes places of a sequence of an encoder's vectors: fewer of them, as wide as the LLM's.

Every form takes runs of vectors and how many of them each place stands for, in order; a run's last place may have
fewer, and then zeros (mlp, transformer) or fewer to take the mean of (pooling).
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import nn
from torch.nn.functional import gelu, relu

from configs.audio_input import AudioInput
from configs.schema import AdapterKind
from train.models.inputs.layered import Layered
from train.models.inputs.runs import Runs, attended, end_to_end, ends_of


class MlpAdapter(nn.Module):
    """`stride` vectors side by side, linear, ReLU, linear (LLaMA-Omni, 2409.06666)."""

    def __init__(self, audio: AudioInput, hidden: int) -> None:
        super().__init__()
        self.stride = audio.adapter.stride
        self.linear_1 = nn.Linear(audio.encoder.width * self.stride, audio.adapter.hidden)
        self.linear_2 = nn.Linear(audio.adapter.hidden, hidden)

    def forward(self, runs: Runs, counts: torch.Tensor) -> torch.Tensor:
        """runs of P places in all; counts: vectors of each, int [P] -> [P, hidden]."""
        side_by_side, _ = Runs(runs.frames, ends_of(counts), self.stride).side_by_side()
        return self.linear_2(relu(self.linear_1(side_by_side.flatten(1))))


class PoolingAdapter(nn.Module):
    """Linear, ReLU, linear, and the mean of `stride` neighbours (MiniCPM-o)."""

    def __init__(self, audio: AudioInput, hidden: int) -> None:
        super().__init__()
        self.stride = audio.adapter.stride
        self.linear_1 = nn.Linear(audio.encoder.width, audio.adapter.hidden)
        self.linear_2 = nn.Linear(audio.adapter.hidden, hidden)

    def forward(self, runs: Runs, counts: torch.Tensor) -> torch.Tensor:
        """As `MlpAdapter`."""
        wide = self.linear_2(relu(self.linear_1(runs.frames)))
        side_by_side, _ = Runs(wide, ends_of(counts), self.stride).side_by_side()
        return side_by_side.sum(1) / counts[:, None]


class TransformerAdapter(Layered):
    """Transformer layers (pre-norm, GELU, 4 x as wide inside), a convolution over `stride` vectors, GELU, linear.

    MinMo (2501.06282) has two layers and a convolution that halves the rate. Their form, and that the layers go
    without positions of their own, which the encoder's vectors carry already, is our choice.
    """

    def __init__(self, audio: AudioInput, hidden: int) -> None:
        from transformers import WhisperConfig
        from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

        super().__init__()
        width, self.stride = audio.encoder.width, audio.adapter.stride
        shape = WhisperConfig(
            d_model=width,
            encoder_attention_heads=audio.adapter.heads,
            encoder_ffn_dim=4 * width,
            attn_implementation="sdpa",
        )
        self.layers = nn.ModuleList([WhisperEncoderLayer(shape) for _ in range(audio.adapter.layers)])
        self.layer_norm = nn.LayerNorm(width)
        self.conv = nn.Conv1d(width, width, self.stride, stride=self.stride)
        self.linear = nn.Linear(width, hidden)

    def forward(self, runs: Runs, counts: torch.Tensor) -> torch.Tensor:
        """As `MlpAdapter`."""
        rows, real = runs.side_by_side()
        mask = attended(real)
        for layer in self.layers:
            rows = layer(rows, mask)
        frames = end_to_end(self.layer_norm(rows), runs.ends, len(runs.frames))
        side_by_side, _ = Runs(frames, ends_of(counts), self.stride).side_by_side()
        return self.linear(gelu(self.conv(side_by_side.transpose(1, 2))[..., 0]))


LAST = ("adapter.linear_2.weight", "adapter.linear.weight")
"""Names of the matrix that makes the LLM's vectors."""

Adapter: TypeAlias = MlpAdapter | PoolingAdapter | TransformerAdapter

_KINDS: dict[AdapterKind, type[Adapter]] = {
    AdapterKind.mlp: MlpAdapter,
    AdapterKind.pooling: PoolingAdapter,
    AdapterKind.transformer: TransformerAdapter,
}


def make_adapter(audio: AudioInput, hidden: int) -> Adapter:
    """The adapter, its weights not yet filled; hidden: width of the LLM."""
    return _KINDS[audio.adapter.kind](audio, hidden)
