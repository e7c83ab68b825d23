"""silero's voice activity detector: a small recurrent network that says every 32 ms how likely it is that somebody
speaks. Its weights are those of the package `silero-vad`, which is located and never imported (it wants torchaudio).

The network that takes frames one after the other in one call is used, with its state carried from call to call: the
probabilities do not depend on how a recording is cut into calls.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from data_pipeline.audio import SAMPLE_RATE
from data_pipeline.packages import only_file, package_folder, package_version

FRAME = 512  # samples a probability
FRAME_SECONDS = FRAME / SAMPLE_RATE
_CONTEXT = 64  # samples of the frame before that the network sees again
_WIDTH = 128  # of the recurrent state
_CALL = 4096  # frames a call at most: two minutes


def vad_identity() -> str:
    """What decides the probabilities, for content hashes."""
    return f"silero-vad {package_version('silero_vad')}"


@lru_cache(1)
def _network() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    file = only_file(package_folder("silero_vad"), "silero_vad_16k_sequence.onnx")
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


class VoiceActivity:
    """The detector over one stream of sound. Raises BadInput where the package is missing."""

    def __init__(self) -> None:
        self._session = _network()
        self._state = (np.zeros((1, 1, _WIDTH), np.float32), np.zeros((1, 1, _WIDTH), np.float32))
        self._held = np.zeros(_CONTEXT, np.float32)  # what the next frame begins with

    def feed(self, wave: np.ndarray) -> np.ndarray:
        """Probabilities, float32 [frames], of the frames that `wave`, float32 [samples] at 16 kHz, completes."""
        held = np.concatenate((self._held, wave))
        frames = (len(held) - _CONTEXT) // FRAME
        self._held = held[frames * FRAME :]
        if not frames:
            return np.zeros(0, np.float32)
        windows = np.lib.stride_tricks.sliding_window_view(held, _CONTEXT + FRAME)[::FRAME][:frames]
        return np.concatenate([self._run(windows[first : first + _CALL]) for first in range(0, frames, _CALL)])

    def finish(self) -> np.ndarray:
        """The probability of the last frame, filled with silence; none if the stream ended with a frame."""
        rest = len(self._held) - _CONTEXT
        return self.feed(np.zeros(FRAME - rest, np.float32)) if rest else np.zeros(0, np.float32)

    def _run(self, windows: np.ndarray) -> np.ndarray:
        inputs = {"input": np.ascontiguousarray(windows), "h": self._state[0], "c": self._state[1]}
        probabilities, hidden, cell = self._session.run(None, inputs)
        self._state = hidden, cell
        return probabilities


def speech_probabilities(wave: np.ndarray) -> np.ndarray:
    """Probability of speech, float32 [frames of 32 ms], of float32 [samples] at 16 kHz."""
    activity = VoiceActivity()
    return np.concatenate((activity.feed(wave), activity.finish()))
