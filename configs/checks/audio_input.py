"""Encoder and adapter: values that cannot work, refused in one line."""

from __future__ import annotations

import re

from configs.audio_input import FEATURES
from configs.schema import AdapterKind, Config, EncoderConfig, EncoderKind
from runtime.exits import BadInput

_NAME = re.compile(r"\w+")  # a part of a file's name, between dots


def check_features(config: Config) -> None:
    """What a corpus keeps of an encoder, and the encoder."""
    encoder, features = config.encoder, config.corpus.features
    for kind in features:
        if kind not in FEATURES:
            raise BadInput(f"corpus.features={features}: {kind} is not one of {', '.join(FEATURES)}")
    if features and encoder is None:
        raise BadInput(f"corpus.features={features} are an encoder's: choose one, such as encoder=whisper_tiny_en")
    if features and config.corpus.speech is None and not config.corpus.voice.startswith("piper:"):
        raise BadInput(f"corpus.features={features} are of sound, and corpus.voice={config.corpus.voice} makes none")
    if encoder is None:
        return
    if features and encoder.weights is None:
        raise BadInput(
            f"corpus.features={features}: encoder.weights is null, and what random weights hear is of no use"
        )
    if not _NAME.fullmatch(encoder.name):
        raise BadInput(f"encoder.name={encoder.name}: has to be letters, digits and underscores")
    for key in ("mels", "width", "layers", "heads", "ffn", "kernel", "positions"):
        value = getattr(encoder, key)
        if value is not None and value < 1:
            raise BadInput(f"encoder.{key}={value}: has to be above 0")
    if encoder.width % encoder.heads:
        raise BadInput(f"encoder.heads={encoder.heads} does not divide encoder.width={encoder.width}")
    _check_kind(encoder)


def _check_kind(encoder: EncoderConfig) -> None:
    """What encoders of one kind alone can have."""
    further, kind = encoder.tp_layers, encoder.kind.value
    if encoder.kind is EncoderKind.sense_voice:
        if further < 1:
            raise BadInput(f"encoder.tp_layers={further}: has to be above 0 with encoder.kind={kind}")
    elif further:
        raise BadInput(f"encoder.tp_layers={further}: has to be 0 with encoder.kind={kind}")
    if encoder.kind is EncoderKind.whisper:
        if encoder.positions is None:
            raise BadInput("encoder.positions is null, and encoder.kind=whisper has a table of so many positions")
    elif encoder.mels % 2:
        raise BadInput(f"encoder.mels={encoder.mels}: has to be even, as half of positions are sines, half cosines")


def check_adapter(config: Config) -> None:
    """The adapter, beside an encoder and on a topology that it can be on."""
    adapter, encoder = config.adapter, config.encoder
    if adapter is None:
        return
    if encoder is None:
        raise BadInput("adapter needs an encoder whose vectors it hears: choose one, such as encoder=whisper_tiny_en")
    for key in ("stride", "hidden", "layers", "heads"):
        if getattr(adapter, key) < 1:
            raise BadInput(f"adapter.{key}={getattr(adapter, key)}: has to be above 0")
    if adapter.kind is AdapterKind.transformer and encoder.width % adapter.heads:
        raise BadInput(f"adapter.heads={adapter.heads} does not divide encoder.width={encoder.width}")
    if config.parallel.context > 1:
        raise BadInput(
            f"parallel.context={config.parallel.context} with an adapter: places that an encoder's vectors fill cannot "
            "be cut for context parallelism yet; take parallel.context=1"
        )
