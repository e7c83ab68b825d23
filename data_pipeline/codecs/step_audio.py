"""Step-Audio's pair of codebooks: linguistic codes from Paraformer's encoder, semantic ones from CosyVoice's tokenizer.

The published program stores the linguistic codes 0 to 1023 and the semantic ones 0 to 4095; in groups of [2, 3].
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from configs.schema import CodecConfig
from data_pipeline.audio import SAMPLE_RATE
from data_pipeline.codecs.batching import batch_samples, batches, pick_device
from data_pipeline.codecs.cosyvoice import SpeechTokenizer
from data_pipeline.codecs.low_frame_rate import filterbank, stacked, with_head
from data_pipeline.codecs.nearest import nearest
from data_pipeline.codecs.paraformer import KEPT, NEW, STRIDE, Cache, ParaformerEncoder, features_in, load_paraformer
from data_pipeline.codecs.registry import codebooks_of, codec_identity
from data_pipeline.codecs.weights import find_file, read_centroids
from runtime.exits import BadInput

_PUBLISHED = "dengcunqin/speech_paraformer-large_asr_nat-zh-cantonese-en-16k-vocab8501-online"  # folder in the hub's
_PEAK, _QUIETEST = 0.999, 0.01
LONG = 600  # seconds above which a wave is encoded chunk by chunk


def peak_normalised(wave: np.ndarray) -> np.ndarray:
    """`wave` with its largest sample at 0.999; sounds below 0.01 are amplified as if they reached it."""
    loudest = max(float(np.abs(wave).max(initial=0.0)), _QUIETEST)
    return (wave / np.float32(loudest) * np.float32(_PEAK)).astype(np.float32)


class Linguistic:
    """Nearest centroids to Paraformer's states, 16.67 a second."""

    def __init__(self, encoder: ParaformerEncoder, centroids: np.ndarray, device: str) -> None:
        self.encoder = encoder.to(device)
        self._centroids = torch.from_numpy(centroids).to(device)

    def codes(self, waves: Sequence[np.ndarray], budget: float) -> list[np.ndarray]:
        """int32 [codes] of each wave, float32 [samples] at 16 kHz; `features_in` says how many. `budget`: samples
        encoded together."""
        found: list[np.ndarray] = [np.zeros(0, np.int32) for _ in waves]
        for index in (index for index, wave in enumerate(waves) if len(wave) > LONG * SAMPLE_RATE):
            found[index] = self._long(waves[index])
        short = [index for index, wave in enumerate(waves) if len(wave) <= LONG * SAMPLE_RATE]
        for places in batches([len(waves[index]) for index in short], budget):
            batch = [short[place] for place in places]
            features = [self._features(waves[index]) for index in batch]
            with torch.inference_mode():
                codes = nearest(self.encoder.encode(features), self._centroids).cpu().numpy().astype(np.int32)
            ends = np.cumsum([len(of) for of in features])[:-1]
            for index, of in zip(batch, np.split(codes, ends), strict=True):
                found[index] = of
        return found

    def _long(self, wave: np.ndarray) -> np.ndarray:
        """int32 [codes] of a wave whose activations would not fit the memory: the same, chunk by chunk."""
        stream, piece = self.stream(), LONG * SAMPLE_RATE
        starts = range(0, len(wave), piece)
        parts = [stream.encode(wave[at : at + piece], last=at + piece >= len(wave)) for at in starts]
        return np.concatenate([part["linguistic"][0] for part in parts])

    def stream(self) -> LinguisticStream:
        return LinguisticStream(self)

    def step(self, features: np.ndarray, cache: Cache) -> np.ndarray:
        """int32 [features]: codes of the next chunk of a stream."""
        with torch.inference_mode():
            return nearest(self.encoder.step(features, cache), self._centroids).cpu().numpy().astype(np.int32)

    @staticmethod
    def _features(wave: np.ndarray) -> np.ndarray:
        count = features_in(len(wave))
        return stacked(with_head(filterbank(wave)), count) if count else np.zeros((0, 560), np.float32)


class LinguisticStream:
    """See `Stream`: linguistic codes alone, four every 240 ms, as of the whole wave. Nothing is normalised, for a
    stream does not know its peak; give sound that is."""

    def __init__(self, of: Linguistic) -> None:
        self._of = of
        self._cache = of.encoder.open()
        self._samples = np.zeros(0, np.float32)  # not yet encoded
        self._kept = np.zeros(0, np.float32)  # samples that the next frames begin with
        self._rows: np.ndarray | None = None  # filterbank rows of the stack that the next chunk completes
        self._ended = False

    def encode(self, wave: np.ndarray, *, last: bool = False) -> dict[str, np.ndarray]:
        """See `Stream.encode`."""
        if self._ended:
            raise ValueError("the stream has ended")
        self._samples = np.concatenate([self._samples, wave.astype(np.float32)])
        codes = [np.zeros(0, np.int32)]
        while len(self._samples) >= STRIDE:
            codes.append(self._chunk(self._samples[:STRIDE], NEW))
            self._samples = self._samples[STRIDE:]
        if last:
            self._ended = True
            before = STRIDE if self._rows is not None else 0
            count = features_in(before + len(self._samples)) - features_in(before)
            if count:
                codes.append(self._chunk(self._samples, count))
        return {"linguistic": np.concatenate(codes)[None]}

    def _chunk(self, samples: np.ndarray, count: int) -> np.ndarray:
        frames = filterbank(np.concatenate([self._kept, samples]))
        rows = with_head(frames) if self._rows is None else np.concatenate([self._rows, frames])
        self._kept, self._rows = samples[-KEPT:], rows[-1:]
        return self._of.step(stacked(rows, count), self._cache)


class StepAudio:
    """Both codebooks. Option `normalise`: waves are brought to the same peak before, as published."""

    def __init__(self, config: CodecConfig) -> None:
        self.codebooks = codebooks_of(config)
        self.sample_rate = SAMPLE_RATE
        books = {book.name: book for book in self.codebooks}
        device = pick_device(config.device)
        names = [f"{prefix}{name}" for prefix in ("", f"{_PUBLISHED}/") for name in ("model.safetensors", "model.pt")]
        weights = find_file(config.weights["paraformer"], "paraformer", *names)
        statistics = weights.with_name("am.mvn")
        if not statistics.is_file():
            statistics = find_file(config.weights["paraformer"], "paraformer", "am.mvn", f"{_PUBLISHED}/am.mvn")
        encoder = load_paraformer(weights, statistics, "paraformer")
        file = find_file(config.weights["centroids"], "centroids", "linguistic_tokenizer.npy")
        centroids = read_centroids(file, "centroids")
        wanted = (books["linguistic"].size, encoder.width)
        if centroids.shape != wanted:
            raise BadInput(f"codec.weights.centroids: {file} has shape {centroids.shape}, wanted is {wanted}")
        self.linguistic = Linguistic(encoder, centroids, device)
        semantic = books["semantic"]
        file = find_file(config.weights["semantic"], "semantic", "speech_tokenizer_v1.onnx")
        self._semantic = SpeechTokenizer(file, "semantic", semantic.size, semantic.rate, device)
        self._normalise = config.options.get("normalise", True)
        self._budget = batch_samples(config.batch_seconds, device, SAMPLE_RATE)
        self._identity = codec_identity(config)

    def encode(self, waves: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        """See `Codec.encode`. Semantic frames are the tokenizer's, linguistic ones `paraformer.features_in`."""
        sounds = [peak_normalised(wave) for wave in waves] if self._normalise else waves
        linguistic = self.linguistic.codes(sounds, self._budget)
        return [
            {"linguistic": codes[None], "semantic": self._semantic.codes(sound)[None]}
            for codes, sound in zip(linguistic, sounds, strict=True)
        ]

    def identity(self) -> str:
        """See `Codec.identity`."""
        return self._identity


def open_codec(config: CodecConfig, folder: Path | None) -> StepAudio:
    """See `registry.open_codec`."""
    return StepAudio(config)
