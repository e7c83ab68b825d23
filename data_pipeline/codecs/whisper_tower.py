"""Whisper's encoder as other tokenizers changed it: other convolutions, masks, fewer layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.functional import gelu, pad

from data_pipeline.codecs.weights import one_line
from runtime.exits import BadInput


class WhisperTower(nn.Module):
    """Two convolutions (the second of stride 2), positions, `layers` Transformer layers, and `final` a norm behind.

    Parameters have transformers' names. `causal`: the convolutions see no later frame.
    """

    def __init__(self, config: Mapping[str, Any], layers: int, *, causal: bool, final: bool) -> None:
        from transformers import WhisperConfig
        from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

        super().__init__()
        width = config["d_model"]
        shape = WhisperConfig(
            d_model=width,
            encoder_attention_heads=config["encoder_attention_heads"],
            encoder_ffn_dim=config["encoder_ffn_dim"],
            activation_function=config.get("activation_function", "gelu"),
            attn_implementation="sdpa",
        )
        self.conv1 = nn.Conv1d(config["num_mel_bins"], width, 3)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2)
        self.positions = nn.Parameter(torch.zeros(int(config["max_source_positions"]), width))
        self.layers = nn.ModuleList([WhisperEncoderLayer(shape) for _ in range(layers)])
        self.layer_norm = nn.LayerNorm(width) if final else None
        self._sides = (2, 0) if causal else (1, 1)

    def forward(self, mel: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """[sounds, frames, width] of mels [sounds, bands, 2 x frames], zeros where there is no sound. `mask`: bool
        [sounds, 1, frames, frames], what each frame may see."""
        hidden = gelu(self.conv2(pad(gelu(self.conv1(pad(mel, self._sides))), self._sides))).transpose(1, 2)
        hidden = hidden + self.positions[: hidden.shape[1]]
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return hidden if self.layer_norm is None else self.layer_norm(hidden)


def load_strictly(module: nn.Module, state: Mapping[str, torch.Tensor], where: str) -> None:
    """Fill `module`. Raises BadInput that names `where` for tensors that are missing, too many or of another shape."""
    try:
        module.load_state_dict({name: value.float() for name, value in state.items()}, strict=True, assign=True)
    except RuntimeError as error:
        raise BadInput(f"{where}: {one_line(error)}") from error
