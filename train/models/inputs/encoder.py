"""The encoder that a model has inside, by its kind."""

from __future__ import annotations

from typing import TypeAlias

from configs.schema import EncoderConfig, EncoderKind
from train.models.inputs.sanm import SanmEncoder
from train.models.inputs.whisper import WhisperEncoder

Encoder: TypeAlias = WhisperEncoder | SanmEncoder


def make_encoder(config: EncoderConfig) -> Encoder:
    """The encoder, its weights not yet filled."""
    return WhisperEncoder(config) if config.kind is EncoderKind.whisper else SanmEncoder(config)
