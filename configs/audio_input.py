"""What a model with an adapter hears, as its config tells: names and sizes that data and model have to share."""

from __future__ import annotations

from dataclasses import dataclass

from configs.schema import AdapterConfig, Config, EncoderConfig, EncoderKind

VECTORS = "vectors"
MEL = "mel"
FEATURES = (VECTORS, MEL)
"""What a corpus can keep of an encoder (`corpus.features`)."""

STACKED = 7  # filterbank frames that are one input of FunASR's encoders


@dataclass(frozen=True)
class Rates:
    """What kinds of encoder differ in for those who store, count and splice. stacked: frames of a spectrogram side by
    side in one of the encoder's inputs; inputs: of these that one vector stands for; seconds: of sound that it does.
    """

    stacked: int
    inputs: int
    seconds: float


_SANM = Rates(stacked=STACKED, inputs=1, seconds=0.06)
RATES = {
    EncoderKind.whisper: Rates(stacked=1, inputs=2, seconds=0.02),
    EncoderKind.sense_voice: _SANM,
    EncoderKind.paraformer: _SANM,
}


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
        return feature_width(self.encoder, MEL if self.encoder.in_model else VECTORS)

    @property
    def inputs(self) -> int:
        """The encoder's inputs that one of its vectors stands for."""
        return RATES[self.encoder.kind].inputs

    @property
    def stride(self) -> int:
        """Frames of these that a place stands for."""
        return self.adapter.stride * (self.inputs if self.encoder.in_model else 1)


def audio_input_of(config: Config) -> AudioInput | None:
    """None: the model hears through codes alone."""
    if config.adapter is None or config.encoder is None:
        return None
    return AudioInput(config.encoder, config.adapter)


def feature_name(encoder: EncoderConfig, kind: str) -> str:
    """What shards call an encoder's features of a kind, one of `FEATURES`."""
    return encoder.name if kind == VECTORS else f"{encoder.name}_{kind}"


def feature_width(encoder: EncoderConfig, kind: str) -> int:
    """Of a frame of an encoder's features of a kind, one of `FEATURES`."""
    return encoder.width if kind == VECTORS else encoder.mels * RATES[encoder.kind].stacked
