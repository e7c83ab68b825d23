"""k-means units of a HuBERT or mHuBERT layer, 50 a second. The layer's states and the centroids are given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from configs.schema import CodecConfig
from data_pipeline.audio import SAMPLE_RATE
from data_pipeline.codecs.batching import batch_samples, batches, pick_device, windows
from data_pipeline.codecs.nearest import nearest
from data_pipeline.codecs.registry import codebooks_of, codec_identity
from data_pipeline.codecs.weights import find_file, from_pretrained, read_centroids
from runtime.exits import BadInput

_WINDOW = 1_600_000  # samples; fairseq's max_chunk, by which published units of longer sounds were made
_SHORTEST = 400  # samples of the first frame


class HubertKMeans:
    """One codebook. Frames = (samples - 400) // 320 + 1, and one of a shorter wave.

    The convolutions run wave by wave, because their group norm takes its statistics over all of an input; the
    Transformer, where the work is, runs on batches with padding masked.
    """

    def __init__(self, config: CodecConfig) -> None:
        from transformers import HubertModel, Wav2Vec2FeatureExtractor

        self.codebooks = codebooks_of(config)
        self.sample_rate = SAMPLE_RATE
        (book,) = self.codebooks
        spec, layer = config.weights["encoder"], config.codebooks[book.name].layer or 1
        self._device = pick_device(config.device)
        model = from_pretrained(HubertModel, spec, "encoder")
        before = from_pretrained(Wav2Vec2FeatureExtractor, spec, "encoder")
        self._normalise = bool(before.do_normalize)
        if not 1 <= layer <= model.config.num_hidden_layers:
            raise BadInput(
                f"codec.codebooks.{book.name}.layer={layer}: the encoder has 1 to {len(model.encoder.layers)}"
            )
        stride = int(np.prod(model.config.conv_stride))
        if abs(SAMPLE_RATE / stride - book.rate) > 0.01 * book.rate:
            raise BadInput(f"codec.codebooks.{book.name}.rate={book.rate}: the encoder makes {SAMPLE_RATE / stride:g}")
        file = find_file(config.weights["centroids"], "centroids", "centroids.npy", f"{book.name}.npy")
        centroids = read_centroids(file, "centroids")
        if centroids.shape != (wanted := (book.size, model.config.hidden_size)):
            raise BadInput(f"codec.weights.centroids: {file} has shape {centroids.shape}, wanted is {wanted}")
        model.encoder.layers = model.encoder.layers[:layer]
        if model.config.do_stable_layer_norm:
            model.encoder.layer_norm = nn.Identity()  # it stands behind the last layer, no unit has passed it
        self._model = model.to(self._device)
        self._centroids = torch.from_numpy(centroids).to(self._device)
        self._budget = batch_samples(config.batch_seconds, self._device, SAMPLE_RATE)
        self._identity = codec_identity(config)

    def encode(self, waves: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        """See `Codec.encode`."""
        pieces, owners = windows([self._prepared(wave) for wave in waves], _WINDOW)
        long_enough = [index for index, piece in enumerate(pieces) if len(piece) >= _SHORTEST]
        parts: list[list[np.ndarray]] = [[] for _ in waves]
        codes: dict[int, np.ndarray] = {}
        for batch in batches([len(pieces[index]) for index in long_enough], self._budget):
            group = [long_enough[place] for place in batch]
            codes.update(zip(group, self._codes([pieces[index] for index in group]), strict=True))
        for index in long_enough:
            parts[owners[index]].append(codes[index])
        return [{self.codebooks[0].name: np.concatenate(of)[None]} for of in parts]

    def _prepared(self, wave: np.ndarray) -> np.ndarray:
        wave = np.pad(wave.astype(np.float32), (0, max(_SHORTEST - len(wave), 0)))
        return (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7) if self._normalise else wave

    def _codes(self, pieces: list[np.ndarray]) -> list[np.ndarray]:
        with torch.inference_mode():
            hidden = []
            for piece in pieces:
                sound = torch.from_numpy(piece).to(self._device)[None]
                hidden.append(self._model.feature_projection(self._model.feature_extractor(sound).transpose(1, 2))[0])
            lengths = [len(of) for of in hidden]
            mask = torch.arange(max(lengths), device=self._device) < torch.tensor(lengths, device=self._device)[:, None]
            states = self._model.encoder(pad_sequence(hidden, batch_first=True), attention_mask=mask).last_hidden_state
            found = nearest(states[mask], self._centroids).cpu().numpy().astype(np.int32)
        return np.split(found, np.cumsum(lengths)[:-1])

    def identity(self) -> str:
        """See `Codec.identity`."""
        return self._identity


def open_codec(config: CodecConfig, folder: Path | None) -> HubertKMeans:
    """See `registry.open_codec`."""
    return HubertKMeans(config)
