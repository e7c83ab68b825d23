"""What a model with an adapter hears, as its config tells: names and sizes that data and model have to share."""

from __future__ import annotations

from dataclasses import dataclass

from configs.schema import AdapterConfig, Config, EncoderConfig

VECTORS = "vectors"
MEL = "mel"
FEATURES = (VECTORS, MEL)
"""What a corpus can keep of an encoder (`corpus.features`)."""

MELS_A_VECTOR = 2  # frames of a spectrogram that one vector of the encoder stands for
STACKED = 7  # filterbank frames that are one input of FunASR's encoders


@dataclass(frozen=True)
class AudioInput:
    """encoder and adapter of a model that hears through them."""

    encoder: EncoderConfig
    adapter: AdapterConfig

    @property
    def features(self) -> str:
        """What shards, and with them feature slots, call what the model reads."""
        return feature_name(self.encoder, MEL if self.encoder.in_model else VECTORS)

    @property
    def width(self) -> int:
        """Of a frame of these."""
        return self.encoder.mels if self.encoder.in_model else self.encoder.width

    @property
    def stride(self) -> int:
        """Frames of these that a place stands for."""
        return self.adapter.stride * (MELS_A_VECTOR if self.encoder.in_model else 1)


def audio_input_of(config: Config) -> AudioInput | None:
    """None: the model hears through codes alone."""
    if config.adapter is None or config.encoder is None:
        return None
    return AudioInput(config.encoder, config.adapter)


def feature_name(encoder: EncoderConfig, kind: str) -> str:
    """What shards call an encoder's features of a kind, one of `FEATURES`."""
    return encoder.name if kind == VECTORS else f"{encoder.name}_{kind}"
