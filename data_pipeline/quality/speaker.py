"""Whose voice it is: embeddings of a GE2E encoder (Wan et al. 2018), as Resemblyzer trained it.

Loudness is raised to -30 dB where it is lower; mel power of 40 bands, not its logarithm, goes through the LSTM in
windows of 1.6 s, about 1.3 a second. Silence is not cut out beforehand, as Resemblyzer's own program does.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from configs.checks.quality import MEASURES
from data_pipeline.audio import SAMPLE_RATE, level_db
from data_pipeline.codecs.weights import weights_identity
from data_pipeline.packages import PACKAGE, only_file, package_folder
from data_pipeline.quality.mel import mel_power
from data_pipeline.utterance import Utterance
from runtime.exits import BadInput

if TYPE_CHECKING:
    import torch

SETTING = "corpus.quality.speaker"
WIDTH = 256  # of an embedding
_HOP, _WINDOW, _BANDS = 160, 400, 40
_FRAMES = 160  # of one window of the LSTM
_STEP = 77  # frames between two windows: 1.3 a second
_COVERED = 0.75  # of the last window, at least, unless it is the only one
_LEVEL = -30.0  # dB below full scale
_SHORTEST = 3.2  # seconds of an utterance whose halves are compared
_VOICE = 0.8  # seconds of a voice that is compared with another's: half a window
_HEARABLE = 0.1  # seconds of a sound that a decoder can take a voice from


class SpeakerEncoder:
    def __init__(self, spec: str) -> None:
        """Raises BadInput where `spec`, a file, a folder or package:<name>, has no pretrained.pt of this encoder."""
        import pickle

        import torch

        file = _weights_file(spec)
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)["model_state"]
            parts = {"lstm": torch.nn.LSTM(_BANDS, WIDTH, 3, batch_first=True), "linear": torch.nn.Linear(WIDTH, WIDTH)}
            for name, module in parts.items():
                prefix = f"{name}."
                module.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        except (OSError, RuntimeError, KeyError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            line = " ".join(str(error).split())[:160]
            raise BadInput(f"{SETTING}={spec}: {file} is not a speaker encoder: {line}") from error
        self._lstm, self._linear = parts["lstm"].eval(), parts["linear"].eval()

    def embed(self, wave: np.ndarray) -> np.ndarray:
        """float32 [256] of length 1, of float32 [samples] at 16 kHz, not silence."""
        import torch

        change = max(_LEVEL - level_db(wave), 0.0)
        sound = wave * np.float32(10 ** (change / 20))
        starts = window_starts(len(sound))
        needed = (starts[-1] + _FRAMES) * _HOP
        mel = mel_power(np.pad(sound, (0, max(needed - len(sound), 0))), _WINDOW, _HOP, _BANDS)
        windows = np.stack([mel[start : start + _FRAMES] for start in starts])
        with torch.inference_mode():
            partial = self._forward(torch.from_numpy(windows)).numpy()
        mean = partial.mean(0)
        return mean / max(float(np.linalg.norm(mean)), 1e-12)

    def _forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Embeddings of length 1, float32 [windows, 256], of mels [windows, frames, 40]."""
        _, (hidden, _) = self._lstm(windows)
        raw = self._linear(hidden[-1]).relu()
        return raw / raw.norm(dim=1, keepdim=True).clamp(min=1e-12)


class SpeakerConsistency:
    """`speaker_consistency`: cosine between the voices of the two halves of an utterance of at least 3.2 s. Low values
    mean that two people speak in it, or that noise or music covers one of the halves."""

    columns: tuple[str, ...] = MEASURES["speaker"]

    def __init__(self, spec: str) -> None:
        self._spec = spec

    def measure(self, wave: np.ndarray, utterance: Utterance) -> dict[str, float]:
        """See `Measure.measure`."""
        half = len(wave) // 2
        if len(wave) < _SHORTEST * SAMPLE_RATE or not wave[:half].any() or not wave[half:].any():
            return {}
        encoder = open_encoder(self._spec)
        return {"speaker_consistency": float(encoder.embed(wave[:half]) @ encoder.embed(wave[half:]))}

    def identity(self) -> str:
        """See `Measure.identity`."""
        return speaker_identity(self._spec)


@lru_cache(2)  # a decoder's and the judge's may be two
def open_encoder(spec: str) -> SpeakerEncoder:
    return SpeakerEncoder(spec)


def has_voice(wave: np.ndarray) -> bool:
    """Whether float32 [samples] at 16 kHz are long enough, and no silence, so that voices can be compared."""
    return len(wave) >= _VOICE * SAMPLE_RATE and bool(wave.any())


def similarity(encoder: str, wave: np.ndarray, other: np.ndarray) -> float | None:
    """Cosine of two voices; None where one of them has none to compare."""
    if not (has_voice(wave) and has_voice(other)):
        return None
    voices = open_encoder(encoder)
    return float(voices.embed(wave) @ voices.embed(other))


def speaker_identity(spec: str) -> str:
    """What decides embeddings beside the sound, for content hashes."""
    return f"ge2e {weights_identity(spec, 'speaker')}"


def voice_given(encoder: str, wave: np.ndarray) -> np.ndarray:
    """What a decoder is told of the voice in float32 [samples] at 16 kHz: its embedding, float32 [256]; zeros where
    there is none."""
    if len(wave) < _HEARABLE * SAMPLE_RATE or not wave.any():
        return np.zeros(WIDTH, np.float32)
    return open_encoder(encoder).embed(wave)


def window_starts(samples: int) -> list[int]:
    """First frames of the windows of a sound; the last one is dropped where the sound covers too little of it."""
    frames = -(-(samples + 1) // _HOP)
    starts = list(range(0, max(1, frames - _FRAMES + _STEP + 1), _STEP))
    covered = (samples - starts[-1] * _HOP) / (_FRAMES * _HOP)
    return starts[:-1] if covered < _COVERED and len(starts) > 1 else starts


def _weights_file(spec: str) -> Path:
    path = package_folder(spec.removeprefix(PACKAGE)) if spec.startswith(PACKAGE) else Path(spec)
    if path.is_dir():
        path = only_file(path, "pretrained.pt")
    if not path.is_file():
        raise BadInput(f"{SETTING}={spec}: no such file, folder or package")
    return path
