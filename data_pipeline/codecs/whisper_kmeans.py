"""A codec of several codebooks, each k-means over one layer of a Whisper encoder at its own rate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xxhash

from configs.schema import CodecConfig
from data_pipeline.audio import SAMPLE_RATE
from data_pipeline.codecs.kmeans import Quantiser
from data_pipeline.codecs.whisper_encoder import RATE, WhisperFeatures, encoder_identity
from data_pipeline.vocabulary import Codebook
from runtime.exits import BadInput

CODEBOOK_FOLDER = "codebooks"


def codebooks_of(codec: CodecConfig) -> tuple[Codebook, ...]:
    """The codebooks of a vocabulary. Raises BadInput where `group` does not name them all."""
    if set(codec.group) != set(codec.codebooks):
        raise BadInput(f"codec.group names {sorted(codec.group)}, the codebooks are {sorted(codec.codebooks)}")
    return tuple(Codebook(name, book.size, book.rate, codec.group[name]) for name, book in codec.codebooks.items())


def pooling(codec: CodecConfig) -> dict[str, int]:
    """Encoder frames that one code of each codebook stands for. Raises BadInput for a rate that is no such share."""
    frames = {name: round(RATE / book.rate) for name, book in codec.codebooks.items()}
    for name, book in codec.codebooks.items():
        if frames[name] < 1 or abs(RATE / frames[name] - book.rate) > 0.01 * book.rate:
            raise BadInput(f"codec.codebooks.{name}.rate={book.rate}: must be {RATE} Hz divided by a whole number")
    return frames


def codebook_file(folder: Path, name: str) -> Path:
    """Where the corpus at `folder` keeps the centroids of a codebook."""
    return folder / CODEBOOK_FOLDER / f"{name}.npz"


class FeatureExtractor:
    """What the codebooks quantise: hidden states averaged over each code's time."""

    def __init__(self, codec: CodecConfig) -> None:
        self._layers = {name: book.layer for name, book in codec.codebooks.items()}
        self._pool = pooling(codec)
        self._encoder = WhisperFeatures(codec.encoder)

    def features(self, wave: np.ndarray) -> dict[str, np.ndarray]:
        """float16 [frames, width] by codebook, of float32 [samples] at 16 kHz."""
        states = self._encoder.hidden_states(wave, set(self._layers.values()))
        return {name: pooled(states[layer], self._pool[name]) for name, layer in self._layers.items()}


def pooled(states: np.ndarray, frames: int) -> np.ndarray:
    """Averages of `frames` neighbours each, the incomplete last ones dropped: float16 [states // frames, width]."""
    whole = len(states) // frames * frames
    return states[:whole].reshape(-1, frames, states.shape[1]).mean(1).astype(np.float16)


class WhisperKMeans:
    """The codec whose codebooks a corpus folder keeps."""

    def __init__(self, codec: CodecConfig, folder: Path) -> None:
        self.codebooks = codebooks_of(codec)
        self.sample_rate = SAMPLE_RATE
        self._extractor = FeatureExtractor(codec)
        files = {book.name: codebook_file(folder, book.name) for book in self.codebooks}
        self._quantisers = {name: Quantiser.load(file) for name, file in files.items()}
        self._encoder = encoder_identity(codec.encoder)
        self._hashes = {name: xxhash.xxh3_128_hexdigest(file.read_bytes()) for name, file in files.items()}

    def encode(self, waves: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        """See `Codec.encode`."""
        return [quantise(self._extractor.features(wave), self._quantisers) for wave in waves]

    def identity(self) -> str:
        """See `Codec.identity`."""
        return " ".join([self._encoder, *(f"{name} {book}" for name, book in self._hashes.items())])


def quantise(features: dict[str, np.ndarray], quantisers: dict[str, Quantiser]) -> dict[str, np.ndarray]:
    """int32 [1, frames] by codebook, of float16 [frames, width] by codebook."""
    return {name: quantisers[name].assign(frames.astype(np.float32))[None] for name, frames in features.items()}
