"""SenseVoice-small's and offline Paraformer's encoders from FunASR's folders: vectors of sound, 16.67 a second.

A folder has `model.pt` (or `model.safetensors`), of which the encoder's tensors are read alone, and `am.mvn`. Positions
are sinusoids without an end, so that sound of any length is encoded at once unless the configuration sets a window.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from configs.audio_input import RATES
from configs.schema import EncoderConfig, EncoderKind
from data_pipeline.audio import SAMPLE_RATE
from data_pipeline.codecs.batching import batch_samples, batches, padded, windows
from data_pipeline.codecs.encoder_sizes import SETTING
from data_pipeline.codecs.low_frame_rate import SHIFT, STATISTICS, STEP, features_of, read_statistics
from data_pipeline.codecs.sanm import NORM_EPS, Sanm, Shape, encoder_state
from data_pipeline.codecs.weights import find_file
from runtime.exits import BadInput


def shape_of(encoder: EncoderConfig) -> Shape:
    return Shape(
        entering=RATES[encoder.kind].stacked * encoder.mels,
        width=encoder.width,
        heads=encoder.heads,
        inner=encoder.ffn,
        layers=encoder.layers,
        tp_layers=encoder.tp_layers if encoder.kind is EncoderKind.sense_voice else None,
        kernel=encoder.kernel,
        eps=NORM_EPS[encoder.kind],
    )


def load_encoder(encoder: EncoderConfig) -> Sanm:
    """The encoder, float32. Raises BadInput where the weights are not those of one with its kind and sizes."""
    assert encoder.weights is not None
    file = find_file(encoder.weights, SETTING, "model.safetensors", "model.pt")
    stored = encoder_state(file, SETTING)
    with torch.device("meta"):
        model = Sanm(shape_of(encoder))
    wanted = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    of_file, named = f"{SETTING}: {file}", f"encoder {encoder.name} (kind {encoder.kind.value})"
    for name, shape in wanted.items():
        if name not in stored:
            raise BadInput(f"{of_file} has no {name}, which {named} has")
        if list(stored[name].shape) != shape:
            raise BadInput(f"{of_file}: {name} has shape {list(stored[name].shape)}, encoder {encoder.name} {shape}")
    if more := sorted(stored.keys() - wanted):
        raise BadInput(f"{of_file} has {more[0]}, which {named} has no place for")
    model.load_state_dict({name: tensor.float() for name, tensor in stored.items()}, strict=True, assign=True)
    return model.eval()


class SanmFeatures:
    """An encoder's inputs and its vectors, of many waves at once. Raises BadInput for other weights than `encoder`'s.

    vectors: whether these are asked for too, and not its inputs alone, for which `am.mvn` suffices.
    """

    def __init__(self, encoder: EncoderConfig, device: str, batch_seconds: float | None, *, vectors: bool) -> None:
        assert encoder.weights is not None
        entering = RATES[encoder.kind].stacked * encoder.mels
        statistics = find_file(encoder.weights, SETTING, STATISTICS)
        self._shift, self._scale = read_statistics(statistics, entering, SETTING)
        self._bands, self._window, self._device = encoder.mels, encoder.positions, device
        self._budget = batch_samples(batch_seconds, device, SAMPLE_RATE) / (SHIFT * STEP)
        self._model = load_encoder(encoder).to(device) if vectors else None

    def inputs(self, wave: np.ndarray) -> np.ndarray:
        """float32 [features, 7 mels] of float32 [samples] at 16 kHz, normalised: one for each vector."""
        return (features_of(wave, self._bands) + self._shift) * self._scale

    def vectors(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """float32 [features, width] of each wave's `inputs`."""
        assert self._model is not None, "not asked for"
        pieces, owners = windows(inputs, self._window or max(map(len, inputs), default=1))
        encoded: list[np.ndarray] = [np.zeros(0)] * len(pieces)
        for batch in batches([len(piece) for piece in pieces], self._budget):
            for index, vectors in zip(batch, self._encode([pieces[index] for index in batch]), strict=True):
                encoded[index] = vectors
        of: list[list[np.ndarray]] = [[] for _ in inputs]
        for owner, vectors in zip(owners, encoded, strict=True):
            of[owner].append(vectors)
        return [np.concatenate(parts) for parts in of]

    @torch.inference_mode()
    def _encode(self, pieces: list[np.ndarray]) -> list[np.ndarray]:
        assert self._model is not None
        rows = padded([torch.from_numpy(piece.T) for piece in pieces]).transpose(1, 2).to(self._device)
        lengths = torch.tensor([len(piece) for piece in pieces], device=self._device)
        real = torch.arange(rows.shape[1], device=self._device) < lengths[:, None]
        found = self._model.encode(rows, real).cpu().numpy()
        return [vectors[: len(piece)] for vectors, piece in zip(found, pieces, strict=True)]
