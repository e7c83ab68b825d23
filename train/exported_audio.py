"""An exported adapter, and the encoder beside it, given what a text LLM of transformers reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from checkpoints.audio_input import ADAPTER_FILE, ENCODER_FILE, part_of
from configs.audio_input import AudioInput
from data_pipeline.batch import FeatureSlots, splice_of
from train.models.inputs.adapter import make_adapter
from train.models.inputs.encoder import Encoder, make_encoder
from train.models.inputs.splice import heard


class ExportedAudioInput:
    """From the folder that `checkpoints.audio_input` wrote, in fp32. multiplier: what the LLM multiplies embeddings by,
    which the places that are heard are to be spared."""

    def __init__(self, folder: Path, audio: AudioInput, hidden: int, multiplier: float = 1.0) -> None:
        self._audio, self._multiplier = audio, multiplier
        self._adapter = make_adapter(audio, hidden)
        self._adapter.load_state_dict(load_file(folder / ADAPTER_FILE))
        self._adapter.float()
        self._encoder: Encoder | None = None
        if audio.encoder.in_model:
            self._encoder = make_encoder(audio.encoder)
            prefix = part_of(audio.encoder)[0].prefixes[0]
            held = load_file(folder / ENCODER_FILE)
            self._encoder.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in held.items()})
            self._encoder.float()

    @torch.no_grad()
    def embeddings(self, tokens: torch.Tensor, slots: Sequence[FeatureSlots], table: torch.nn.Module) -> torch.Tensor:
        """[1, T, hidden] of tokens [T], -1 at the places of `slots`; table: the LLM's embedding."""
        row: torch.Tensor = table(tokens.clamp(min=0))
        if slots:
            splice = splice_of([(0, run) for run in slots])
            row[splice.places] = heard(self._audio, self._adapter, self._encoder, splice) / self._multiplier
        return row[None]
