"""What a corpus keeps of a speech encoder, for models that hear through it: its vectors, or what it is given."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from configs.audio_input import MEL, VECTORS, feature_name, feature_width
from configs.schema import Config, EncoderConfig, EncoderKind
from data_pipeline.audio import SAMPLE_RATE
from data_pipeline.codecs.batching import pick_device, windows
from data_pipeline.codecs.encoder_sizes import SETTING
from data_pipeline.codecs.log_mel import LogMel
from data_pipeline.codecs.low_frame_rate import statistics_identity
from data_pipeline.codecs.weights import weights_identity
from data_pipeline.codecs.whisper_encoder import WINDOW, WhisperFeatures, whole_frames
from runtime.exits import BadInput


def describe_features(config: Config) -> dict[str, Any]:
    """By the name that samples have them under, what the features that the corpus keeps are: {encoder, kind, width};
    JSON-ready."""
    encoder = config.encoder
    if encoder is None:
        return {}
    return {
        feature_name(encoder, kind): {
            "encoder": encoder_identity(encoder, kind),
            "kind": kind,
            "width": feature_width(encoder, kind),
        }
        for kind in sorted(config.corpus.features)
    }


def encoder_identity(encoder: EncoderConfig, kind: str) -> str:
    """What decides an encoder's features of a kind beside the sound: of vectors its weights, of spectrograms what they
    are normalised by, of Whisper's nothing."""
    assert encoder.weights is not None
    if kind == VECTORS:
        decided = [encoder.kind.value, weights_identity(encoder.weights, SETTING)]
        # FunASR's weights tell neither the heads, nor windows, which are our setting.
        own = [] if encoder.kind is EncoderKind.whisper else [encoder.heads, encoder.positions]
        return json.dumps([*decided, *own])
    if encoder.kind is EncoderKind.whisper:
        return encoder.kind.value
    return json.dumps([encoder.kind.value, statistics_identity(encoder.weights, SETTING)])


class Listener:
    """The features that `corpus.features` asks for, of many waves at once. Raises BadInput where the weights are not
    those of `encoder`."""

    def __init__(self, config: Config) -> None:
        encoder = config.encoder
        assert encoder is not None and encoder.weights is not None, "checked"
        wanted = config.corpus.features
        self._names = {kind: feature_name(encoder, kind) for kind in wanted}
        ear = _Whisper if encoder.kind is EncoderKind.whisper else _Sanm
        self._ear = ear(encoder, pick_device(config.codec.device), config.codec.batch_seconds, wanted)

    def features(self, waves: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        """float16 [frames, width] by name, of float32 [samples] at 16 kHz: vectors, of the last layer and its norm;
        spectrograms, `configs.audio_input.Rates.inputs` frames for each of those vectors."""
        found = self._ear.features(waves)
        return [{self._names[kind]: frames.astype(np.float16) for kind, frames in of.items()} for of in found]


class _Whisper:
    """Vectors 50 times a second, spectrograms 100 times."""

    def __init__(self, encoder: EncoderConfig, device: str, batch_seconds: float | None, wanted: Sequence[str]) -> None:
        assert encoder.weights is not None
        self._mel = LogMel(encoder.mels, device) if MEL in wanted else None
        self._vectors = WhisperFeatures(encoder.weights, device, batch_seconds, SETTING) if VECTORS in wanted else None
        if self._vectors and (self._vectors.layers, self._vectors.width) != (encoder.layers, encoder.width):
            raise BadInput(
                f"encoder.weights={encoder.weights}: {self._vectors.layers} layers of {self._vectors.width}, "
                f"encoder {encoder.name} has {encoder.layers} of {encoder.width}"
            )

    def features(self, waves: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        """[frames, width] by kind."""
        found: list[dict[str, np.ndarray]] = [{} for _ in waves]
        if self._vectors is not None:
            last = self._vectors.layers
            for of, states in zip(found, self._vectors.hidden_states(waves, [last]), strict=True):
                of[VECTORS] = states[last]
        if self._mel is not None:
            for of, wave in zip(found, waves, strict=True):
                of[MEL] = self._spectrogram(self._mel, wave)
        return found

    @staticmethod
    def _spectrogram(mel: LogMel, wave: np.ndarray) -> np.ndarray:
        """As the encoder is given it, window by window: each has a floor of its own."""
        pieces, _ = windows([whole_frames(wave)], WINDOW * SAMPLE_RATE)
        return np.concatenate([mel(piece).T.cpu().numpy() for piece in pieces])


class _Sanm:
    """Vectors and spectrograms alike, 16.67 times a second."""

    def __init__(self, encoder: EncoderConfig, device: str, batch_seconds: float | None, wanted: Sequence[str]) -> None:
        from data_pipeline.codecs.sanm_encoder import SanmFeatures

        self._of = SanmFeatures(encoder, device, batch_seconds, vectors=VECTORS in wanted)
        self._wanted = wanted

    def features(self, waves: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        """[frames, width] by kind."""
        inputs = [self._of.inputs(wave) for wave in waves]
        made = {MEL: inputs} if MEL in self._wanted else {}
        if VECTORS in self._wanted:
            made[VECTORS] = self._of.vectors(inputs)
        return [{kind: of[number] for kind, of in made.items()} for number in range(len(waves))]
