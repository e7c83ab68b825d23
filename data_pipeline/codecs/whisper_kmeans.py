"""A codec of several codebooks, each k-means over one layer of a Whisper encoder at its own rate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xxhash

from configs.schema import CodecConfig
from data_pipeline.audio import SAMPLE_RATE
from data_pipeline.codecs.batching import pick_device
from data_pipeline.codecs.kmeans import Quantiser
from data_pipeline.codecs.registry import codebooks_of, codec_identity
from data_pipeline.codecs.whisper_encoder import RATE, WhisperFeatures
from runtime.exits import BadInput

CODEBOOK_FOLDER = "codebooks"


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


def centroid_files(codec: CodecConfig, folder: Path | None) -> dict[str, Path]:
    """The file of centroids of each codebook: those that `weights.centroids` gives, a corpus or a folder of
    `<codebook>.npz`, else those learnt for the corpus at `folder`. Raises BadInput where one is missing."""
    given = codec.weights.get("centroids")
    if given is None and folder is None:
        raise BadInput(
            f"codec {codec.name} has no centroids: give codec.weights.centroids, or a corpus that learnt them"
        )
    root = Path(given) if given is not None else Path(str(folder))
    files = {}
    for name in codec.codebooks:
        places = [codebook_file(root, name), root / f"{name}.npz"]
        found = [place for place in places if place.is_file()]
        if not found:
            raise BadInput(f"{root} has no centroids of codebook {name}: neither {places[0]} nor {places[1]}")
        files[name] = found[0]
    return files


class FeatureExtractor:
    """What the codebooks quantise: hidden states averaged over each code's time."""

    def __init__(self, codec: CodecConfig) -> None:
        self._layers = {name: book.layer or 1 for name, book in codec.codebooks.items()}
        self._pool = pooling(codec)
        self._encoder = WhisperFeatures(codec.weights["encoder"], pick_device(codec.device), codec.batch_seconds)

    def features(self, waves: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        """float16 [frames, width] of each wave by codebook, of float32 [samples] at 16 kHz."""
        encoded = self._encoder.hidden_states(waves, set(self._layers.values()))
        return [
            {name: pooled(states[layer], self._pool[name]) for name, layer in self._layers.items()}
            for states in encoded
        ]


def pooled(states: np.ndarray, frames: int) -> np.ndarray:
    """Averages of `frames` neighbours each, the incomplete last ones dropped: float16 [states // frames, width]."""
    whole = len(states) // frames * frames
    return states[:whole].reshape(-1, frames, states.shape[1]).mean(1).astype(np.float16)


class WhisperKMeans:
    """The codec with the centroids that a corpus keeps, or that the config gives."""

    def __init__(self, codec: CodecConfig, folder: Path | None) -> None:
        self.codebooks = codebooks_of(codec)
        self.sample_rate = SAMPLE_RATE
        self._extractor = FeatureExtractor(codec)
        files = centroid_files(codec, folder)
        self._quantisers = {name: Quantiser.load(file) for name, file in files.items()}
        for book in self.codebooks:
            if (entries := len(self._quantisers[book.name].centroids)) != book.size:
                raise BadInput(f"{files[book.name]} has {entries} centroids, codec.codebooks.{book.name} {book.size}")
        hashes = [f"{name} {xxhash.xxh3_128_hexdigest(file.read_bytes())}" for name, file in files.items()]
        self._identity = " ".join([codec_identity(codec), *hashes])

    def encode(self, waves: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        """See `Codec.encode`. Frames = samples / (320 x the codebook's pooling), rounded down."""
        return [quantise(features, self._quantisers) for features in self._extractor.features(waves)]

    def identity(self) -> str:
        """See `Codec.identity`."""
        return self._identity


def quantise(features: dict[str, np.ndarray], quantisers: dict[str, Quantiser]) -> dict[str, np.ndarray]:
    """int32 [1, frames] by codebook, of float16 [frames, width] by codebook."""
    return {name: quantisers[name].assign(frames.astype(np.float32))[None] for name, frames in features.items()}


def open_codec(config: CodecConfig, folder: Path | None) -> WhisperKMeans:
    """See `registry.open_codec`."""
    return WhisperKMeans(config, folder)
