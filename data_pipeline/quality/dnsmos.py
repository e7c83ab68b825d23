"""DNSMOS: opinion scores that listeners would give, 1 to 5, as Microsoft's models guess them.

P.835 has separate scores for the speech, the background and the whole (Reddy et al. 2022), P.808 one for the whole.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from configs.checks.quality import MEASURES
from data_pipeline.audio import SAMPLE_RATE
from data_pipeline.codecs.weights import weights_identity
from data_pipeline.packages import PACKAGE, package_folder
from data_pipeline.quality.mel import mel_power
from data_pipeline.utterance import Utterance
from runtime.exits import BadInput

SETTING = "corpus.quality.dnsmos"
CLIP_SECONDS = 9.01
CLIP = 144_160  # samples that the P.835 model takes
_FILES = ("sig_bak_ovr.onnx", "model_v8.onnx")
# From what the P.835 model gives to opinion scores: polynomials, highest power first.
_TO_SCORES = {
    "dnsmos_sig": (-0.08397278, 1.22083953, 0.0052439),
    "dnsmos_bak": (-0.13166888, 1.60915514, -0.39604546),
    "dnsmos_ovrl": (-0.06766283, 1.11546468, 0.04602535),
}
_BATCH = 8  # clips at once


class Dnsmos:
    """`dnsmos_sig`, `dnsmos_bak`, `dnsmos_ovrl` and `dnsmos_p808`: means over clips of 9.01 s, one a second. A shorter
    sound is repeated until it fills one, as the models' makers do. The models were made of speech in noise up to about
    20 s; cost grows with length."""

    columns: tuple[str, ...] = MEASURES["dnsmos"]

    def __init__(self, spec: str) -> None:
        self._spec = spec

    @cached_property
    def _sessions(self) -> tuple[Any, Any]:
        import onnxruntime

        folder = (
            package_folder(self._spec.removeprefix(PACKAGE)) if self._spec.startswith(PACKAGE) else Path(self._spec)
        )
        folder = folder / "dnsmos_models" if (folder / "dnsmos_models").is_dir() else folder
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        sessions = []
        for name in _FILES:
            if not (folder / name).is_file():
                raise BadInput(f"{SETTING}={self._spec}: no {name} in {folder}")
            provider = ["CPUExecutionProvider"]
            sessions.append(onnxruntime.InferenceSession(str(folder / name), options, providers=provider))
        return sessions[0], sessions[1]

    def measure(self, wave: np.ndarray, utterance: Utterance) -> dict[str, float]:
        """See `Measure.measure`."""
        if not len(wave) or not wave.any():
            return {}
        p835, p808 = self._sessions
        raw, whole = [], []
        clips = clips_of(np.clip(wave, -1.0, 1.0))
        for first in range(0, len(clips), _BATCH):
            batch = clips[first : first + _BATCH]
            raw.append(p835.run(None, {"input_1": np.stack(batch)})[0])
            whole.append(p808.run(None, {"input_1": np.stack([p808_features(clip) for clip in batch])})[0])
        scores = np.concatenate(raw).astype(np.float64)
        found = {
            name: float(np.polyval(polynomial, scores[:, column]).mean())
            for column, (name, polynomial) in enumerate(_TO_SCORES.items())
        }
        return found | {"dnsmos_p808": float(np.concatenate(whole).mean())}

    def identity(self) -> str:
        """See `Measure.identity`."""
        return f"dnsmos {weights_identity(self._spec, 'dnsmos')}"


def clips_of(wave: np.ndarray) -> list[np.ndarray]:
    """float32 clips of `CLIP` samples: one begins every whole second that leaves room for one, at least one. A shorter
    sound is doubled until it is long enough. The clips are those of the published program, which leaves a few out where
    its product of seconds and rate falls short of a sample; leaving them in would change scores that are compared."""
    sound = np.asarray(wave, np.float32)
    while len(sound) < CLIP:
        sound = np.concatenate([sound, sound])
    seconds = range(max(len(sound) // SAMPLE_RATE - CLIP // SAMPLE_RATE, 1))
    clips = [sound[second * SAMPLE_RATE : int((second + CLIP_SECONDS) * SAMPLE_RATE)] for second in seconds]
    return [clip for clip in clips if len(clip) == CLIP]


def p808_features(clip: np.ndarray) -> np.ndarray:
    """float32 [900, 120]: decibels below the loudest value, 80 at most, as (dB + 40) / 40."""
    power = mel_power(clip[:-160], 321, 160, 120)
    decibels = 10 * np.log10(np.maximum(power, 1e-10)) - 10 * np.log10(max(float(power.max()), 1e-10))
    return ((np.maximum(decibels, decibels.max() - 80.0) + 40) / 40).astype(np.float32)
