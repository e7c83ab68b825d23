"""What a corpus keeps of a speech encoder, for models that hear through it: its vectors, or what it is given."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from configs.audio_input import MEL, VECTORS, feature_name
from configs.schema import Config
from data_pipeline.audio import SAMPLE_RATE
from data_pipeline.codecs.batching import pick_device, windows
from data_pipeline.codecs.log_mel import LogMel
from data_pipeline.codecs.weights import weights_identity
from data_pipeline.codecs.whisper_encoder import WINDOW, WhisperFeatures, whole_frames
from runtime.exits import BadInput


def describe_features(config: Config) -> dict[str, Any]:
    """By the name that samples have them under, what the features that the corpus keeps are: {encoder, kind, width};
    JSON-ready. Of spectrograms, which no weights decide, the encoder is its kind."""
    encoder = config.encoder
    described: dict[str, Any] = {}
    if encoder is None:
        return described
    for kind in sorted(config.corpus.features):
        vectors = kind == VECTORS
        described[feature_name(encoder, kind)] = {
            "encoder": encoder_identity(config) if vectors else encoder.kind,
            "kind": kind,
            "width": encoder.width if vectors else encoder.mels,
        }
    return described


def encoder_identity(config: Config) -> str:
    """What decides an encoder's vectors beside the sound."""
    encoder = config.encoder
    assert encoder is not None and encoder.weights is not None
    return json.dumps([encoder.kind, weights_identity(encoder.weights, "encoder")])


class Listener:
    """The features that `corpus.features` asks for, of many waves at once. Raises BadInput where the weights are not
    those of `encoder`."""

    def __init__(self, config: Config) -> None:
        encoder = config.encoder
        assert encoder is not None and encoder.weights is not None, "checked"
        device = pick_device(config.codec.device)
        self._names = {kind: feature_name(encoder, kind) for kind in config.corpus.features}
        self._mel = LogMel(encoder.mels, device)
        self._vectors = None
        if VECTORS in self._names:
            self._vectors = WhisperFeatures(encoder.weights, device, config.codec.batch_seconds)
            if (self._vectors.layers, self._vectors.width) != (encoder.layers, encoder.width):
                raise BadInput(
                    f"encoder.weights={encoder.weights}: {self._vectors.layers} layers of {self._vectors.width}, "
                    f"encoder {encoder.name} has {encoder.layers} of {encoder.width}"
                )

    def features(self, waves: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        """float16 [frames, width] by name, of float32 [samples] at 16 kHz: vectors, 50 a second, of the last layer and
        its norm; spectrograms, 100 a second, two frames for each of those vectors."""
        found: list[dict[str, np.ndarray]] = [{} for _ in waves]
        if self._vectors is not None:
            last = self._vectors.layers
            for of, states in zip(found, self._vectors.hidden_states(waves, [last]), strict=True):
                of[self._names[VECTORS]] = states[last].astype(np.float16)
        if MEL in self._names:
            for of, wave in zip(found, waves, strict=True):
                of[self._names[MEL]] = self._spectrogram(wave)
        return found

    def _spectrogram(self, wave: np.ndarray) -> np.ndarray:
        """As the encoder is given it, window by window: each has a floor of its own."""
        pieces, _ = windows([whole_frames(wave)], WINDOW * SAMPLE_RATE)
        return np.concatenate([self._mel(piece).T.cpu().numpy() for piece in pieces]).astype(np.float16)
