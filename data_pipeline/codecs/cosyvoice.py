"""CosyVoice's speech tokenizers, as published in ONNX: v1 (vector quantisation) and v2 (finite scalar quantisation)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from configs.schema import CodecConfig
from data_pipeline.audio import SAMPLE_RATE
from data_pipeline.codecs.batching import pick_device
from data_pipeline.codecs.log_mel import LogMel
from data_pipeline.codecs.registry import codebooks_of, codec_identity
from data_pipeline.codecs.weights import find_file, one_line
from runtime.exits import BadInput

FILES = ("speech_tokenizer_v2.onnx", "speech_tokenizer_v1.onnx", "speech_tokenizer_v2.batch.onnx")
_MELS = 128
_WINDOW = 30 * SAMPLE_RATE  # longest input
_SHORTEST = 480  # samples; what is left of a wave below this is dropped
_SLACK = 2  # codes by which a window may differ from rate x duration


class SpeechTokenizer:
    """One ONNX tokenizer, fed windows of at most 30 s, one at a time: the graph has no mask that is known to hold for a
    batch. Inputs are Whisper's log mel [1, 128, frames] and its number of frames, int32 [1]; output is the codes."""

    def __init__(self, file: Path, part: str, size: int, rate: float, device: str) -> None:
        import onnxruntime
        import torch

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        if device != "cpu" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            providers.insert(0, "CUDAExecutionProvider")
        try:
            self._session = onnxruntime.InferenceSession(str(file), options, providers=providers)
        except Exception as error:  # onnxruntime's errors have no other common class
            raise BadInput(f"codec.weights.{part}: {file} is not an ONNX model: {one_line(error)}") from error
        inputs = [(entry.name, entry.type) for entry in self._session.get_inputs()]
        if [kind for _, kind in inputs] != ["tensor(float)", "tensor(int32)"]:
            raise BadInput(f"codec.weights.{part}: {file} takes {inputs}, not a log mel (float) and its length (int32)")
        self._mel_name, self._length_name = (name for name, _ in inputs)
        self._mel = LogMel(_MELS)
        self._file, self._part, self._size, self._rate = file, part, size, rate

    def codes(self, wave: np.ndarray) -> np.ndarray:
        """int32 [codes] of float32 [samples] at 16 kHz: about rate x duration of each window, as the model rounds; none
        of a last window below 480 samples. Raises BadInput where the model gives another number or a code too large."""
        windows = [wave[start : start + _WINDOW] for start in range(0, len(wave), _WINDOW)]
        parts = [self._window(window) for window in windows if len(window) >= _SHORTEST]
        return np.concatenate([np.zeros(0, np.int32), *parts])

    def _window(self, window: np.ndarray) -> np.ndarray:
        mel = self._mel(window).numpy()[None]
        fed = {self._mel_name: mel, self._length_name: np.array([mel.shape[2]], np.int32)}
        try:
            codes = np.asarray(self._session.run(None, fed)[0]).reshape(-1)
        except Exception as error:  # onnxruntime's errors have no other common class
            raise BadInput(f"codec.weights.{self._part}: {self._file} does not run: {one_line(error)}") from error
        expected = self._rate * round(len(window) / SAMPLE_RATE, 2)
        if abs(len(codes) - expected) > _SLACK:
            raise BadInput(
                f"codec.weights.{self._part}: {self._file} gives {len(codes)} codes for "
                f"{len(window) / SAMPLE_RATE:.2f} s, not {self._rate} a second"
            )
        if len(codes) and not 0 <= codes.min() <= codes.max() < self._size:
            raise BadInput(
                f"codec.weights.{self._part}: {self._file} gives code {codes.max()}, the size is {self._size}"
            )
        return codes.astype(np.int32)


class CosyVoice:
    """One codebook from one tokenizer."""

    def __init__(self, config: CodecConfig) -> None:
        self.codebooks = codebooks_of(config)
        self.sample_rate = SAMPLE_RATE
        (book,) = self.codebooks
        file = find_file(config.weights["model"], "model", *FILES)
        self._tokenizer = SpeechTokenizer(file, "model", book.size, book.rate, pick_device(config.device))
        self._identity = codec_identity(config)

    def encode(self, waves: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        """See `Codec.encode`."""
        return [{self.codebooks[0].name: self._tokenizer.codes(wave)[None]} for wave in waves]

    def identity(self) -> str:
        """See `Codec.identity`."""
        return self._identity


def open_codec(config: CodecConfig, folder: Path | None) -> CosyVoice:
    """See `registry.open_codec`."""
    return CosyVoice(config)
